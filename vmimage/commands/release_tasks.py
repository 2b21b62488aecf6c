"""The Invoke tasks for releases that are there: `tasks.py` is the namespace, and says how tasks are written."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context

from vmimage.commands.chosen import options
from vmimage.commands.task import ACCELERATOR, BUNDLE, DEB_MIRROR, JSON, MATRIX, MIRROR, task


@task(
    positional=["file"],
    help={
        "file": "an image file, of a release or not; with --signature a release: its folder, IMAGE or IMAGE/VERSION",
        "accelerator": ACCELERATOR,
        "matrix": MATRIX,
        "signature": "boot nothing: check the signatures and digests of a release; the next three ask for it, too",
        "allowed-signers": "the file that says whose signatures count, see ssh-keygen(1)",
        "revoked": "a file of keys that do not count any more: public keys, or a key revocation list of ssh-keygen",
        "signer": "the only one of the allowed signers whose signature counts",
        "json": JSON,
    },
)
def verify(
    _: Context,
    file: str,
    accelerator: str | None = None,
    matrix: str = "default",
    signature: bool = False,
    allowed_signers: str | None = None,
    revoked: str | None = None,
    signer: str | None = None,
    json: bool = False,
) -> None:
    """Boot an image file and run the checks inside it."""
    chosen = options(accelerator=accelerator, allowed_signers=allowed_signers)
    if signature or (allowed_signers, revoked, signer) != (None, None, None):
        from vmimage.commands.verify_signature import verify_signature

        verify_signature(file, chosen, revoked=revoked, signer=signer, json=json)
    else:
        from vmimage.commands.verify_file import verify_and_tell

        verify_and_tell(Path(file), chosen, matrix=matrix, json_lines=json)


@task(
    positional=["release", "key"],
    optional=["key"],
    help={
        "release": "a release: its folder, IMAGE (the latest) or IMAGE/VERSION",
        "key": "your ssh key, or its .pub if ssh-agent has it (default: VMIMAGE_SIGN)",
        "with_": "sign SHA256SUMS with gpg or minisign instead; KEY is then one of that program",
        "json": JSON,
    },
)
def sign(_: Context, release: str, key: str | None = None, with_: str | None = None, json: bool = False) -> None:
    """Sign a release with your ssh key."""
    from vmimage.commands.sign import sign_and_tell, sign_otherwise

    if with_:
        sign_otherwise(release, key, with_, options(), json=json)
    else:
        sign_and_tell(release, options(sign=key), json=json)


@task(
    positional=["release"],
    iterable=["mirror"],
    help={
        "release": "a release: its folder, IMAGE (the latest) or IMAGE/VERSION",
        "mirror": MIRROR,
        "deb-mirror": DEB_MIRROR,
        "bundle": BUNDLE,
        "accelerator": ACCELERATOR,
        "json": JSON,
    },
)
def rebuild(
    _: Context,
    release: str,
    mirror: list[str] | None = None,
    deb_mirror: str | None = None,
    bundle: str | None = None,
    accelerator: str | None = None,
    json: bool = False,
) -> None:
    """Make a release again, and tell whether it is the same."""
    from vmimage.commands.rebuild import rebuild as make_again

    chosen = options(mirrors=mirror or (), debian_mirror=deb_mirror, bundle=bundle, accelerator=accelerator)
    make_again(release, chosen, json_lines=json)
