"""`invoke sign RELEASE KEY`, and `--sign KEY` of a build."""

from __future__ import annotations

from pathlib import Path

from vmimage.commands.session import session
from vmimage.publish import ssh
from vmimage.publish.programs import find_program
from vmimage.publish.signatures import ALL, SIGNATURE, is_signed, sign_release, sign_sums
from vmimage.stages.release.dist import choose
from vmimage.util.console import Console
from vmimage.util.errors import InputError, VmimageError
from vmimage.util.files import expanded
from vmimage.util.settings import Options


def sign_and_tell(release: str, chosen: Options, *, json: bool) -> None:
    """Sign a release that is there, and print who can check it how."""
    with session(chosen, json_lines=json) as (console, _store):
        if not chosen.sign:
            raise InputError(
                "there is no key to sign with",
                hint="invoke sign RELEASE KEY, or set VMIMAGE_SIGN: an ssh key, or its .pub if ssh-agent has it",
            )
        folder = release_folder(release, chosen.dist)
        wanted = ssh.fingerprint_of(chosen.sign)
        before = is_signed(folder)
        fingerprint = _signed(folder, chosen.sign, console)
        if before and fingerprint != wanted:
            raise InputError(
                f"{folder} is signed already, with the key {fingerprint}, and signatures are never replaced",
                hint="copy the files that SHA256SUMS names to another folder, and sign them there",
            )
        console.event("result", release=str(folder), fingerprint=fingerprint, files=list(ALL))
        console.say(f"{folder} {'was signed before' if before else 'is signed'} with {fingerprint}: {', '.join(ALL)}")


def sign_otherwise(release: str, key: str | None, program: str, chosen: Options, *, json: bool) -> None:
    """Sign SHA256SUMS of a release that is there with GPG or minisign, and print the name of the signature."""
    with session(chosen, json_lines=json) as (console, _store):
        if not key:
            raise InputError("there is no key to sign with", hint=f"invoke sign RELEASE KEY --with {program}")
        folder, found = release_folder(release, chosen.dist), find_program(program)
        path = sign_sums(folder, found, key)
        console.event("result", release=str(folder), files=[path.name])
        console.say(f"{folder} is signed: {path.name}")


def require_key(chosen: Options, console: Console) -> None:
    """Check before a build that its key can sign, if it has one."""
    if chosen.sign:
        with console.stage("key", str(chosen.sign)) as step:
            step.outcome = ssh.require_key(chosen.sign, step.now)


def sign_built(folder: Path, key: Path, console: Console) -> None:
    """Sign what a build released, if it is not signed; a signature of another key stays, and is told.

    Raises:
        VmimageError: It cannot be signed; it stays as it is, unsigned.
    """
    before = is_signed(folder)
    try:
        fingerprint = _signed(folder, key, console)
    except VmimageError as error:
        hint = f"{error.hint}\nthen sign it: invoke sign {folder} {key}"
        raise type(error)(f"{folder} is released, and not signed: {error.message}", hint=hint) from error
    if before and fingerprint != ssh.fingerprint_of(key):
        console.warn(f"{folder} was released before, and {SIGNATURE} in it is of another key: {fingerprint}")


def _signed(folder: Path, key: Path, console: Console) -> str:
    with console.stage("sign", str(folder)) as step:
        step.outcome = sign_release(folder, key, step.now)
    return step.outcome


def release_folder(text: str, dist: Path) -> Path:
    """Return the folder of a release that is named by a folder, a file in one, IMAGE or IMAGE/VERSION.

    Raises:
        InputError: There is none.
        VerifyError: It is damaged.
    """
    path = expanded(text, "RELEASE").absolute()
    if path.is_dir() or path.is_file():
        return (path if path.is_dir() else path.parent).resolve()
    image, _, version = text.partition("/")
    return choose(dist, image, version or None).path
