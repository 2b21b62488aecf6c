"""The host keys of machines, kept in a file of this project: not in the user's `~/.ssh/known_hosts`.

It has OpenSSH's format. It lies outside the cache, so that `invoke clean` makes no machine unknown.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import paramiko

from vmimage.util.errors import HostError, InputError
from vmimage.util.files import written_beside
from vmimage.util.locks import lock_file

KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
SSH_PORT = 22
# Some thousand keys. What is older than that goes.
LIMIT_BYTES = 1 << 19


def host_name(host: str, port: int) -> str:
    """Return the name of an address, as ssh programs write it."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def parse_fingerprint(text: str) -> str:
    """Return a fingerprint in the form that keys give theirs.

    Raises:
        InputError: It is none.
    """
    match = re.fullmatch(r"(SHA256:[A-Za-z0-9+/]{43})=?", text)
    if not match:
        raise InputError(f"--host-key {text}: no fingerprint", hint="SHA256:… as `ssh-keygen -lf` shows it")
    return match[1]


def parse_key(kind: str, text: str) -> paramiko.PKey | None:
    """Return a public key from its two words; None if they are not exactly what that key is written as."""
    try:
        data = base64.b64decode(text, validate=True)
        if kind not in KINDS or not data.startswith(len(kind).to_bytes(4) + kind.encode()):
            return None
        key = paramiko.PKey.from_type_string(kind, data)
    except (ValueError, OverflowError, paramiko.SSHException):
        return None
    return key if key.asbytes() == data else None


def known_keys(known_hosts: Path, name: str) -> list[paramiko.PKey]:
    """Return the keys of an address; none if it is unknown.

    Raises:
        HostError: The file cannot be read.
    """
    with _told(known_hosts):
        return [key for names, key in _read(known_hosts) if name in names]


def record(known_hosts: Path, name: str, keys: Sequence[paramiko.PKey]) -> bool:
    """Replace what is known of an address, and of no other; returns whether it was something else.

    Args:
        keys: None of them: the address is unknown from now on.

    Raises:
        HostError: The file cannot be written.
    """
    with _told(known_hosts):
        known_hosts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = lock_file(known_hosts.with_name(f"{known_hosts.name}.lock"), fcntl.LOCK_EX)
        assert lock  # noqa: S101 - it waited
        with lock:
            entries = _read(known_hosts)
            if {key for names, key in entries if name in names} == set(keys):
                return False
            others = [([other for other in names if other != name], key) for names, key in entries]
            _write(known_hosts, [entry for entry in others if entry[0]] + [([name], key) for key in keys])
            return True


def _read(known_hosts: Path) -> list[tuple[list[str], paramiko.PKey]]:
    """Return the lines that are whole: names, and the key."""
    try:
        with known_hosts.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - LIMIT_BYTES))
            data = file.read(LIMIT_BYTES)
    except FileNotFoundError:
        return []
    if size > LIMIT_BYTES:
        _, _, data = data.partition(b"\n")
    entries = []
    for line in data.decode(errors="replace").split("\n"):
        names, kind, text = [*line.split(), "", "", ""][:3]
        key = parse_key(kind, text)
        if key:
            entries.append((names.split(","), key))
    return entries


def _write(known_hosts: Path, entries: Sequence[tuple[list[str], paramiko.PKey]]) -> None:
    lines = (f"{','.join(names)} {key.get_name()} {key.get_base64()}\n" for names, key in entries)
    with written_beside(known_hosts, mode=0o600) as beside:
        beside.write_bytes("".join(lines).encode())


@contextlib.contextmanager
def _told(known_hosts: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "set VMIMAGE_STATE to another folder"
        raise HostError(f"{known_hosts} cannot be used: {error}", hint=hint) from error
