"""Families of what is read of a signed release before its signature is known to count."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.hostile.mutations import cuts, flips, mixed, no_files, wrong_values
from tests.hostile.texts import good
from tests.hostile.trial import Case, Family
from tests.signing import allow, make_key, nothing
from vmimage.publish import dsse, ssh
from vmimage.publish.ssh import Trust
from vmimage.publish.sums import read_file

SUMS = b"0" * 64 + b"  README.md\n"


def _trust(base: Path) -> tuple[Path, Trust]:
    base.mkdir()
    key = make_key(base / "key")
    return key, Trust(allowed=allow(base / "allowed", key))


def signatures(base: Path) -> Family:
    """Of one signature, all other texts are none."""
    key, trust = _trust(base)
    data = ssh.sign(SUMS, key, nothing)

    def read(path: Path, folder: Path) -> object:
        tempfile.tempdir = str(folder.parent)
        return ssh.verify(SUMS, read_file(path, ssh.MOST_SIGNATURE), trust, path.name)

    lines = data.splitlines(keepends=True)
    return Family(
        read=read,
        good=good(data=data),
        cases=(
            *cuts(data),
            *flips(data),
            *mixed(data),
            *no_files(),
            Case(name="an empty line in it", data=lines[0] + b"\n" + b"".join(lines[1:])),
            Case(name="lines of Windows", data=data.replace(b"\n", b"\r\n")),
            Case(name="on one line", data=lines[0] + b"".join(lines[1:-1]).replace(b"\n", b"") + b"\n" + lines[-1]),
            Case(name="of nothing", data=lines[0] + b"U1NIU0lH\n" + lines[-1]),
            Case(name="a length without an end", data=lines[0] + b"U1NIU0lHAAAAAf////8=\n" + lines[-1]),
            Case(name="a public key", data=key.with_name("key.pub").read_bytes()),
            Case(name="a MiB", data=lines[0] + b"A" * (1 << 20) + b"\n" + lines[-1]),
        ),
        codes=(6,),
        taken={"on one line": "the same signature, wrapped otherwise"},
    )


def envelopes(base: Path) -> Family:
    """An envelope is one line, each byte of which counts."""
    key, trust = _trust(base)
    data = dsse.sealed({"_type": "x"}, lambda text: ssh.sign(text, key, nothing))

    def read(path: Path, folder: Path) -> object:
        tempfile.tempdir = str(folder.parent)
        return dsse.opened(read_file(path, dsse.MOST_ENVELOPE), trust, path.name)

    return Family(
        read=read,
        good=good(data=data),
        cases=(
            *cuts(data),
            *flips(data),
            *mixed(data),
            *no_files(),
            *wrong_values(json.loads(data), each=4),
            Case(name="written otherwise", data=json.dumps(json.loads(data)).encode()),
            Case(name="deep", data=b"[" * 100_000),
            Case(name="a key twice", data=data.replace(b"{", b'{"payload": "", ', 1)),
            Case(name="no end of a line", data=data.strip()),
            Case(name="17 MiB", data=data + b" " * (17 << 20)),
        ),
        codes=(6,),
    )


SIGNED: dict[str, Callable[[Path], Family]] = {"signatures": signatures, "envelopes": envelopes}
