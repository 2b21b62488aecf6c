"""Keys made for one purpose, and waiting until a guest answers ssh."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from vmimage.errors import VerifyError

ATTEMPT_SECONDS = 15.0

# Paramiko logs a traceback for every attempt that a booting guest does not answer.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """An ed25519 key: the private half in a file that only we can read, the public half as OpenSSH's text."""

    private: Path
    public: str


def make_key(folder: Path) -> KeyPair:
    """Make an ed25519 key (Packer 1.6.6 speaks no rsa-sha2, and today's sshd no ssh-rsa)."""
    key = Ed25519PrivateKey.generate()
    private = folder / "id_ed25519"
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return KeyPair(private=private, public=public)


@contextlib.contextmanager
def connect(port: int, user: str, key: Path) -> Iterator[paramiko.SSHClient]:
    """Log in to a guest on this host's loopback.

    The host key is not checked: it was made a moment ago inside the guest, and the way there is our own QEMU.

    Raises:
        OSError, paramiko.SSHException: It does not answer.
    """
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())  # noqa: S507 - see above
    with contextlib.closing(client):
        client.connect(
            "127.0.0.1",
            port,
            user,
            key_filename=str(key),
            timeout=ATTEMPT_SECONDS,
            banner_timeout=ATTEMPT_SECONDS,
            auth_timeout=ATTEMPT_SECONDS,
            allow_agent=False,
            look_for_keys=False,
        )
        yield client


def wait_for_ssh(port: int, user: str, key: Path, *, timeout: float, alive: Callable[[], bool]) -> float:
    """Wait until a user can log in; returns the seconds it took.

    Args:
        alive: Tells whether the machine still runs; waiting ends when it does not.

    Raises:
        VerifyError: It did not answer in time.
    """
    started = time.monotonic()
    why = "nothing answered"
    while time.monotonic() - started < timeout:
        if not alive():
            raise VerifyError("the machine stopped before it answered ssh")
        try:
            with connect(port, user, key) as client:
                _, stdout, _ = client.exec_command("true", timeout=ATTEMPT_SECONDS)
                if stdout.channel.recv_exit_status() == 0:
                    return time.monotonic() - started
        except (TimeoutError, OSError, EOFError, paramiko.SSHException) as error:
            why = str(error) or type(error).__name__
        time.sleep(0.5)
    raise VerifyError(f"the machine did not answer ssh within {timeout:.0f} s (last: {why})")
