"""Signatures of SHA256SUMS by other programs than ssh-keygen, where they are installed: GPG and minisign.

They are for people who have these programs' keys already. We make them, and each program checks its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmimage.publish.sums import SUMS
from vmimage.util.errors import HostError, InputError
from vmimage.util.files import read_regular
from vmimage.util.run import run, tail

SECONDS = 120.0
"""A smart card waits to be touched."""
MOST_SIGNATURE = 1 << 20
MOST_SAID = 64 << 10
SHOWN_LINES = 4


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that signs a file without asking.

    Attributes:
        suffix: Of the signature, behind the name of the file.
        arguments: (key, file, signature) -> its arguments.
        has_file: The key is the name of a file, and not of a key that the program keeps.
        asks: What it says when it would have to ask for a passphrase.
        remedy: What to do then.
    """

    name: str
    suffix: str
    arguments: Callable[[str, Path, Path], list[str | Path]]
    has_file: bool
    asks: str
    remedy: str

    @property
    def file(self) -> str:
        """The name of the signature in a release."""
        return f"{SUMS}.{self.suffix}"


def _gpg(key: str, file: Path, signature: Path) -> list[str | Path]:
    quiet = ["--batch", "--no-tty", "--pinentry-mode", "error"]
    return [*quiet, f"--local-user={key}", "--armor", "--output", signature, "--detach-sign", file]


def _minisign(key: str, file: Path, signature: Path) -> list[str | Path]:
    return ["-S", "-s", key, "-m", file, "-x", signature]


PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        Program(
            name="gpg",
            suffix="asc",
            arguments=_gpg,
            has_file=False,
            asks="pinentry",
            remedy="let gpg-agent know it first: gpg --local-user KEY --clearsign /dev/null",
        ),
        Program(
            name="minisign",
            suffix="minisig",
            arguments=_minisign,
            has_file=True,
            asks="get_password",
            remedy="use a key without one: minisign -G -W, or minisign -C -W for one that you have",
        ),
    )
}
FILES = tuple(program.file for program in PROGRAMS.values())


def find_program(name: str) -> Program:
    """Return a program by its name.

    Raises:
        InputError: It is none that is known here.
        HostError: It is not installed.
    """
    if name not in PROGRAMS:
        raise InputError(f"--with {name}: unknown", hint=f"one of {', '.join(PROGRAMS)}; ssh-keygen without --with")
    if not shutil.which(name):
        raise HostError(f"{name} is not installed", hint=f"`apt-get install {name}`, or sign with an ssh key")
    return PROGRAMS[name]


def sign_with(program: Program, key: str, data: bytes) -> bytes:
    """Return a program's signature of SHA256SUMS. Nothing asks for a passphrase.

    Raises:
        InputError: The key cannot sign, with the reason.
        HostError: The program waited for longer than SECONDS.
    """
    if program.has_file:
        key = os.path.abspath(key)  # noqa: PTH100 - a text for a program
        if not Path(key).is_file():
            raise InputError(f"there is no key {key}", hint=f"name a secret key of {program.name}")
    with tempfile.TemporaryDirectory(prefix="vmimage-sign-") as scratch:
        file, signature = Path(scratch, SUMS), Path(scratch, program.file)
        file.write_bytes(data)
        argv = [program.name, *program.arguments(key, file, signature)]
        done = run(argv, cwd=Path("/"), timeout=SECONDS, check=False, most_output=MOST_SAID, error=HostError)
        if done.returncode and done.seconds >= SECONDS:
            raise HostError(f"{program.name} did not end within {SECONDS:.0f} s", hint="does a smart card wait?")
        if done.returncode and program.asks in done.output.lower():
            raise InputError(f"the key {key} has a passphrase, and nothing asks for it here", hint=program.remedy)
        if done.returncode:
            raise InputError(f"{program.name} does not sign with {key}:{tail(done.output, SHOWN_LINES)}")
        return read_regular(signature, MOST_SIGNATURE)
