"""The user's keys, as ssh finds them: those of the agent, of ~/.ssh/config, and the usual files.

Nothing asks for a passphrase: a job at night would wait for ever. A key that has one is used by way of the agent.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from paramiko.agent import AgentSSH
from paramiko.pkey import PublicBlob

from vmimage.access.ssh_config import KeySettings
from vmimage.vm.limits import KEY_BYTES, LOGIN_SECONDS

# The order of ssh.
USUAL = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")
CLASSES: tuple[tuple[type, type[paramiko.PKey]], ...] = (
    (rsa.RSAPrivateKey, paramiko.RSAKey),
    (ec.EllipticCurvePrivateKey, paramiko.ECDSAKey),
    (ed25519.Ed25519PrivateKey, paramiko.Ed25519Key),
)
OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
MAGIC = b"openssh-key-v1\0"


class UnusableKeyError(Exception):
    """Why a file gives no key, as the end of a sentence that begins with its name."""


class HeldKey(paramiko.AgentKey):
    """A key of an agent that may refuse to sign: its user says no, or does not touch the security key."""

    @property
    def shown(self) -> str:
        """What people know it by."""
        return f"{self.comment or self.get_name()} (agent)"

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> bytes:  # type: ignore[override]
        """Sign; what an agent does not sign is signed wrongly, so that the machine asks for the next key."""
        try:
            return bytes(super().sign_ssh_data(data, algorithm))
        except (OSError, ValueError, paramiko.SSHException):
            refused = paramiko.Message()
            refused.add_string(algorithm or self.get_name())
            refused.add_string(b"")
            return refused.asbytes()


@dataclass(kw_only=True)
class Identities:
    """What can be offered to a machine.

    Attributes:
        usable: Where each is from, and the key; in the order in which they are offered.
        unusable: Sentences of what is there, and why it cannot be used.
    """

    usable: list[tuple[str, paramiko.PKey]] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)


@contextlib.contextmanager
def find_identities(
    named: Path | None, settings: KeySettings, environment: Mapping[str, str], home: Path, warn: Callable[[str], object]
) -> Iterator[Identities]:
    """Yield the keys to log in with; those of the agent can be used inside the `with` block.

    Args:
        named: The only one that counts, from its file or from the agent.
        warn: Told when there is an agent that does not answer.
    """
    files = [named] if named else settings.files
    if files is None:
        files = [path for name in USUAL if (path := home / ".ssh" / name).exists()]
    agent = environment.get("SSH_AUTH_SOCK", "") if settings.agent is None else settings.agent
    with _agent_keys(agent, warn) as held:
        found = Identities()
        wanted = {blob for file in files if (blob := public_blob(file))}
        offered = [key for key in held if key.asbytes() in wanted]
        if not (named or settings.only):
            offered += [key for key in held if key.asbytes() not in wanted]
        found.usable += [(key.shown, key) for key in offered]
        in_agent = {key.asbytes() for key in held}
        for file in files:
            if public_blob(file) in in_agent:
                continue
            try:
                found.usable.append((str(file), load_private_key(file)))
            except UnusableKeyError as error:
                found.unusable.append(f"{file} {error}")
        # To sign with a security key, somebody has to touch it.
        found.usable.sort(key=lambda each: each[1].get_name().startswith("sk-"))
        yield found


def load_private_key(path: Path) -> paramiko.PKey:
    """Read a private key: of OpenSSH, PKCS#8, PKCS#1 or SEC 1; and the certificate beside it, if any.

    Raises:
        UnusableKeyError: There is none, or none that can be used from its file.
    """
    data = _data(path)
    if data.startswith(b"PuTTY-User-Key-File"):
        raise UnusableKeyError("is of PuTTY: `puttygen KEY -O private-openssh -o NEW` makes one of ssh")
    if data.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        raise UnusableKeyError("is a public key; the private one is beside it, without .pub")
    try:
        key = _key(data)
    except TypeError as error:
        raise UnusableKeyError(f"has a passphrase, and nothing asks for it here: `ssh-add {path}` first") from error
    except UnsupportedAlgorithm as error:
        if "sk-" in str(error):
            raise UnusableKeyError(f"is of a security key, which the agent uses: `ssh-add {path}` first") from error
        raise UnusableKeyError(f"cannot be used: {error!s:.200}") from error
    except (ValueError, paramiko.SSHException) as error:
        raise UnusableKeyError(f"is no private key of ssh: {error!s:.200}") from error
    certificate = path.with_name(f"{path.name}-cert.pub")
    if certificate.exists():
        with contextlib.suppress(OSError, ValueError, paramiko.SSHException):  # without it, it is still a key
            key.load_certificate(str(certificate))
    return key


def _key(data: bytes) -> paramiko.PKey:
    """Return a private key from its text; TypeError, if it has a passphrase."""
    openssh = data.lstrip().startswith(OPENSSH)
    loaded = load_ssh_private_key(data, None) if openssh else load_pem_private_key(data, None)
    for kind, key_class in CLASSES:
        if isinstance(loaded, kind):
            # By the one form that all of paramiko's classes read.
            text = loaded.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
            return key_class.from_private_key(io.StringIO(text))
    raise ValueError("its kind is not used any more; `ssh-keygen -t ed25519` makes a new one")


def public_blob(path: Path) -> bytes:
    """Return the public half of a key, also of one with a passphrase; empty if it is not told."""
    with contextlib.suppress(UnusableKeyError, ValueError):
        data = _data(path)
        if OPENSSH in data:
            body = b"".join(data.partition(OPENSSH)[2].partition(b"-----END")[0].split())
            message = paramiko.Message(base64.b64decode(body).removeprefix(MAGIC))
            for _ in ("cipher", "kdf", "kdf options"):
                message.get_binary()
            if message.get_int() == 1:
                return message.get_binary()
    # Other forms do not tell it; and where the agent has the private half, a file may be the public one.
    for public in (path, path.with_name(f"{path.name}.pub")):
        with contextlib.suppress(UnusableKeyError, ValueError, LookupError, paramiko.SSHException):
            return bytes(PublicBlob.from_string(_data(public).decode()).key_blob)
    return b""


@contextlib.contextmanager
def _agent_keys(path: str, warn: Callable[[str], object]) -> Iterator[list[HeldKey]]:
    """Yield the keys that an agent holds; none where there is no agent."""
    if not path:
        yield []
        return
    agent = AgentSSH()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(LOGIN_SECONDS)
        try:
            connection.connect(path)
            agent._connect(connection)  # type: ignore[attr-defined]
        except (OSError, ValueError, paramiko.SSHException) as error:
            warn(f"the ssh agent at {path} is not used: {error}")
        yield [HeldKey(agent, key.blob, key.comment) for key in agent.get_keys()]


def _data(path: Path) -> bytes:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            data = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise UnusableKeyError(f"cannot be read: {error.strerror}") from error
    if len(data) > KEY_BYTES:
        raise UnusableKeyError(f"is larger than {KEY_BYTES >> 10} KiB, and no key")
    return data
