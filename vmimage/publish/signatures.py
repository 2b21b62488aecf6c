"""The signatures of a release: files of fixed names beside its own. They are written once, and change nothing.

A release is signed when SHA256SUMS.sig is there, which is written last.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmimage.publish import dsse, ssh, statements
from vmimage.publish.programs import FILES, Program, sign_with
from vmimage.publish.ssh import Signer, Trust
from vmimage.publish.sums import MOST_SUMS, SUMS, parse_sums, read_file, require_files, require_same
from vmimage.stages.release.manifest import MANIFEST, MOST_BYTES, Manifest, manifest_of
from vmimage.util.errors import HostError, InputError, VerifyError
from vmimage.util.files import listed, written_beside
from vmimage.util.json_file import parse_json

SIGNATURE = f"{SUMS}.sig"
STATEMENTS = {
    "provenance.intoto.jsonl": (statements.PROVENANCE, statements.provenance),
    "verdict.intoto.jsonl": (statements.TEST_RESULT, statements.verdict),
}
ALL = (*STATEMENTS, SIGNATURE)


@dataclass(frozen=True, kw_only=True)
class Content:
    """The files of a release, each of which is the one that SHA256SUMS speaks of.

    Attributes:
        sums: The bytes of SHA256SUMS.
        digests: File -> SHA-256.
        data: All that manifest.json says.
    """

    sums: bytes
    digests: Mapping[str, str]
    manifest: Manifest
    data: Mapping[str, Any]

    @property
    def images(self) -> dict[str, str]:
        """Image file -> SHA-256."""
        return {file.name: file.sha256 for file in self.manifest.files.values()}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A release with good signatures.

    Attributes:
        signers: Signature -> who made it.
        beside: Names of what lies beside the signed files, and nobody signed.
    """

    content: Content
    signers: Mapping[str, Signer]
    beside: tuple[str, ...]
    provenance: Mapping[str, Any]
    verdict: Mapping[str, Any]


def is_signed(folder: Path) -> bool:
    """Tell whether a release has a signature, good or not."""
    return os.path.lexists(folder / SIGNATURE)


# --- To sign ---------------------------------------------------------------------------------------------


def sign_release(folder: Path, key: Path, tell: Callable[[str], object]) -> str:
    """Sign a release, if it is not signed; returns the fingerprint of the key that it is signed with.

    What an interrupted signing left is completed. What is there is never replaced.

    Args:
        key: See `ssh.require_key`.

    Raises:
        VerifyError: It is no whole release, or its signatures are of other bytes.
        InputError: The key cannot sign, or another one began.
        HostError: It cannot be written, or ssh-keygen is missing or too old.
    """
    with _alone(folder):
        if is_signed(folder):
            return _signed(folder)
        content = read_content(folder, read_file(folder / SUMS, MOST_SUMS))

        def signature_of(data: bytes) -> bytes:
            return ssh.sign(data, key, tell)

        signature = signature_of(content.sums)
        # Of a certificate, ssh-keygen tells another fingerprint than its signature names.
        fingerprint = ssh.read_signature(signature, SIGNATURE)
        for name, (kind, made) in STATEMENTS.items():
            if os.path.lexists(folder / name):
                _require_begun(folder / name, kind, content, fingerprint)
            else:
                _write(folder / name, dsse.sealed(made(content.data, content.digests[MANIFEST]), signature_of))
        _write(folder / SIGNATURE, signature)
        return fingerprint


def sign_sums(folder: Path, program: Program, key: str) -> Path:
    """Sign SHA256SUMS of a release with another program; returns the signature.

    Raises:
        InputError: There is such a signature, or the key cannot sign.
        VerifyError: It is no whole release.
        HostError: It cannot be written.
    """
    path = folder / program.file
    with _alone(folder):
        if os.path.lexists(path):
            raise InputError(f"{path} is there already, and signatures are never replaced")
        _write(path, sign_with(program, key, read_content(folder, read_file(folder / SUMS, MOST_SUMS)).sums))
    return path


def _signed(folder: Path) -> str:
    """Return whose signatures a release has; they are good, whoever made them."""
    return check_release(folder, None).signers[SIGNATURE].fingerprint


def _require_begun(path: Path, kind: str, content: Content, fingerprint: str) -> None:
    data, signer = dsse.opened(read_file(path, dsse.MOST_ENVELOPE), None, str(path))
    statements.require_statement(data, kind, content.images, str(path))
    if signer.fingerprint != fingerprint:
        raise InputError(
            f"{path} is signed with the key {signer.fingerprint} already, and {SIGNATURE} is not there",
            hint=f"sign with that key; or remove {path.name}, if that key is not to be used",
        )


def _write(path: Path, data: bytes) -> None:
    with written_beside(path, once=True) as beside:
        beside.write_bytes(data)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a release, so that two signers do not mix.

    Raises:
        HostError: It cannot be opened or written.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Without locks, what is written once is still not replaced.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise HostError(
            f"{error.filename or folder}: {error.strerror}", hint="may you write to this folder?"
        ) from error


# --- To check --------------------------------------------------------------------------------------------


def check_release(folder: Path, trust: Trust | None) -> Checked:
    """Check the signatures of a release, the digests of its files, and what its statements speak of.

    Args:
        trust: Whose signatures count, see `ssh.verify`.

    Raises:
        VerifyError: Something does not hold, with the reason.
        InputError: The files of `trust` cannot be used.
        HostError: ssh-keygen is missing or too old.
    """
    if not is_signed(folder):
        raise VerifyError(
            f"{folder} is not signed: there is no {SIGNATURE}",
            hint="if its publisher signs releases, get it again; to sign one of your own: invoke sign",
        )
    sums = read_file(folder / SUMS, MOST_SUMS)
    signature = read_file(folder / SIGNATURE, ssh.MOST_SIGNATURE)
    # First of all: nothing else is read on the word of somebody unknown.
    signers = {SIGNATURE: ssh.verify(sums, signature, trust, str(folder / SIGNATURE))}
    content = read_content(folder, sums)
    predicates: dict[str, Mapping[str, Any]] = {}
    for name, (kind, _) in STATEMENTS.items():
        path = folder / name
        data, signers[name] = dsse.opened(read_file(path, dsse.MOST_ENVELOPE), trust, str(path))
        predicates[kind] = statements.require_statement(data, kind, content.images, str(path)).predicate
    known = {*content.digests, SUMS, *ALL, *FILES}
    return Checked(
        content=content,
        signers=signers,
        beside=tuple(path.name for path in listed(folder) if path.name not in known),
        provenance=predicates[statements.PROVENANCE],
        verdict=predicates[statements.TEST_RESULT],
    )


def read_content(folder: Path, sums: bytes) -> Content:
    """Read a release, and compare each of its files with SHA256SUMS.

    Raises:
        VerifyError: A file is missing or another one, or manifest.json does not fit.
    """
    digests = parse_sums(sums)
    if MANIFEST not in digests:
        raise VerifyError(f"{folder / SUMS} does not name {MANIFEST}: this is no release of vmimage")
    data = read_file(folder / MANIFEST, MOST_BYTES)
    require_same(folder / MANIFEST, digests[MANIFEST], hashlib.sha256(data).hexdigest())
    try:
        parsed = parse_json(data)
        manifest = manifest_of(parsed)
    except ValueError as error:
        raise VerifyError(f"{folder / MANIFEST}: {error}") from None
    assert isinstance(parsed, dict)  # noqa: S101 - its model was read from it
    for file in manifest.files.values():
        if digests.get(file.name) != file.sha256:
            raise VerifyError(f"{folder / MANIFEST} and {SUMS} do not say the same of {file.name}")
    require_files(folder, digests, {file.name: file.bytes for file in manifest.files.values()})
    return Content(sums=sums, digests=digests, manifest=manifest, data=parsed)
