"""The host keys of machines, kept in a file of this project: not in the user's `~/.ssh/known_hosts`.

It has OpenSSH's format. It lies outside the cache, so that `invoke clean` makes no machine unknown.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the file as it is, with its end.

    Attributes:
        names: Of whom a key is; none where the line is no key, and somebody else's affair.
    """

    raw: bytes
    names: tuple[str, ...] = ()
    key: paramiko.PKey | None = None

    def without(self, name: str) -> bytes:
        """Return it as it is without one name; empty if it has no other."""
        if not self.key or name not in self.names:
            return self.raw
        first = self.raw.split(None, 1)[0]
        others = [each for each in first.split(b",") if each.decode(errors="replace") != name]
        return self.raw.replace(first, b",".join(others), 1) if others else b""


def known_keys(known_hosts: Path, name: str, warn: Callable[[str], object] = lambda _: None) -> list[paramiko.PKey]:
    """Return the keys of an address; none if it is unknown.

    Args:
        warn: Told of lines that are no keys.

    Raises:
        HostError: The file cannot be read.
    """
    with _told(known_hosts):
        lines = _read(known_hosts)
    bad = [number for number, line in enumerate(lines, 1) if not line.key and line.raw.strip() and line.raw[:1] != b"#"]
    if bad:
        warn(f"{known_hosts}: {len(bad)} lines are no host keys, and not used; the first is line {bad[0]}")
    return [line.key for line in lines if line.key and name in line.names]


def record(known_hosts: Path, name: str, keys: Sequence[paramiko.PKey]) -> bool:
    """Replace what is known of an address, and of no other; returns whether it was something else.

    Other lines stay as they are, byte for byte, also those that are no keys.

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
            lines = _read(known_hosts)
            if {line.key for line in lines if line.key and name in line.names} == set(keys):
                return False
            text = b"".join(line.without(name) for line in lines)
            if text and not text.endswith(b"\n"):
                text += b"\n"
            text += "".join(f"{name} {key.get_name()} {key.get_base64()}\n" for key in keys).encode()
            with written_beside(known_hosts, mode=0o600) as beside:
                beside.write_bytes(text)
            return True


def _read(known_hosts: Path) -> list[Line]:
    """Return the lines of the file; of one that is too large, those at its end."""
    try:
        handle = os.open(known_hosts, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & stat.S_IWOTH:
            raise PermissionError(errno.EPERM, "other users can write to it")
        size = found.st_size
        if size > LIMIT_BYTES:
            file.seek(size - LIMIT_BYTES)
        data = file.read(LIMIT_BYTES)
    if size > LIMIT_BYTES:
        _, _, data = data.partition(b"\n")
    # Not splitlines, which takes more for an end of a line.
    return [_line(raw) for raw in re.findall(rb"[^\n]*\n|[^\n]+", data)]


def _line(raw: bytes) -> Line:
    names, kind, text = [*raw.decode(errors="replace").split(), "", "", ""][:3]
    key = parse_key(kind, text)
    return Line(raw=raw, names=tuple(names.split(",")), key=key) if key else Line(raw=raw)


@contextlib.contextmanager
def _told(known_hosts: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "set VMIMAGE_STATE to another folder"
        raise HostError(f"{known_hosts} cannot be used: {error}", hint=hint) from error
