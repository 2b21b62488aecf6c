"""A machine that runs somewhere, as its user reaches it: by ssh, usually through a port of localhost."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from vmimage.access.known_hosts import KINDS, host_name, known_keys, parse_fingerprint, record
from vmimage.util.errors import HostError, InputError
from vmimage.util.ports import require_port

USER = "dev"
SECONDS = 20.0
ANSWER_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a machine answers ssh, and who logs in.

    Attributes:
        key: A private key; the ssh agent and the keys of `~/.ssh` when not given.
        host_key: The fingerprint of a host key that the machine must have, whatever was known before.
    """

    host: str = "127.0.0.1"
    port: int = 2222
    user: str = USER
    key: Path | None = None
    host_key: str | None = None

    def __post_init__(self) -> None:
        require_port(self.port, "--ssh-port")
        if self.host_key is not None:
            parse_fingerprint(self.host_key)

    def __str__(self) -> str:
        return f"{self.user}@{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def dialled(self) -> str:
        """The host that is connected to: `invoke run` forwards ports from 127.0.0.1, and records its keys so."""
        return "127.0.0.1" if self.host == "localhost" else self.host


@contextlib.contextmanager
def log_in(address: Address, known_hosts: Path) -> Iterator[paramiko.SSHClient]:
    """Open an ssh session with a machine whose host key is known, or confirmed by its fingerprint.

    Anybody on this host can listen on a port before the machine does, so an unknown key is never believed.

    Args:
        known_hosts: The file of known keys; a confirmed one is recorded there.

    Raises:
        InputError: Its key is unknown, or another than the known one; or none of our keys is let in.
        HostError: Nothing answers there.
    """
    name = host_name(address.dialled, address.port)
    known = known_keys(known_hosts, name)
    if address.host_key is not None:
        fingerprint = parse_fingerprint(address.host_key)
        known = [key for key in known if key.fingerprint == fingerprint]
        if not known:
            known = [_confirmed(address, fingerprint)]
            record(known_hosts, name, known)
    client = paramiko.SSHClient()
    for key in known:
        client.get_host_keys().add(name, key.get_name(), key)
    client.set_missing_host_key_policy(_Refuse(address))
    with contextlib.closing(client):
        with _answering(address):
            client.connect(
                address.dialled,
                address.port,
                address.user,
                key_filename=str(address.key) if address.key else None,
                timeout=SECONDS,
                banner_timeout=SECONDS,
                auth_timeout=SECONDS,
                allow_agent=address.key is None,
                look_for_keys=address.key is None,
            )
        yield client


def read_answer(channel: paramiko.Channel, *, seconds: float) -> tuple[int, str, str]:
    """Wait until a command in the machine has ended; returns its exit status, its output and its errors.

    Raises:
        TimeoutError: It takes longer.
        HostError: It says more than our commands do; a machine may go on for ever.
    """
    end = time.monotonic() + seconds
    output, errors = (_read_all(channel, receive, end) for receive in (channel.recv, channel.recv_stderr))
    if not channel.status_event.wait(end - time.monotonic()):
        raise TimeoutError("the command does not end")
    return channel.recv_exit_status(), output, errors


def _read_all(channel: paramiko.Channel, receive: Callable[[int], bytes], end: float) -> str:
    text = bytearray()
    while True:
        channel.settimeout(max(0.01, end - time.monotonic()))
        part = receive(4096)
        text += part
        if not part:
            return text.decode(errors="replace")
        if len(text) > ANSWER_BYTES:
            raise HostError(f"the machine answers with more than {ANSWER_BYTES >> 10} KiB", hint="is it yours?")


class _Refuse(paramiko.MissingHostKeyPolicy):
    def __init__(self, address: Address) -> None:
        self._address = address

    def missing_host_key(self, _client: paramiko.SSHClient, _hostname: str, key: paramiko.PKey) -> None:
        """Refuse a key of which nothing is known.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"the host key of {self._address} is not known: {_shown(key)}",
            hint=f"a machine that `invoke run` is still starting is known when it has started; for any other, "
            f"{_way_out(key)}",
        )


@contextlib.contextmanager
def _answering(address: Address) -> Iterator[None]:
    """Turn what goes wrong between us and an ssh server into errors that say so."""
    try:
        yield
    except paramiko.BadHostKeyException as error:
        raise InputError(
            f"another machine than before answers at {address}: {_shown(error.key)}",
            hint=f"if it is a new machine of yours, {_way_out(error.key)}, which replaces the old one",
        ) from error
    except paramiko.AuthenticationException as error:
        raise InputError(
            f"{address} lets none of your keys in", hint="name the private key that it knows with --ssh-key"
        ) from error
    # Names and keys that are none: ValueError, OverflowError.
    except (OSError, EOFError, ValueError, OverflowError, paramiko.SSHException) as error:
        raise HostError(
            f"no machine answers ssh at {address}: {error}",
            hint="start one (`invoke run`, VirtualBox, …), or name its port with --ssh-port",
        ) from error


def _confirmed(address: Address, fingerprint: str) -> paramiko.PKey:
    """Return the machine's host key that has a fingerprint; a machine shows one kind of key a connection.

    Raises:
        InputError: It has no such key.
    """
    shown = []
    for kind in KINDS:
        with _answering(address):
            key = _host_key(address, kind)
        if key and key.fingerprint == fingerprint:
            return key
        shown += [_shown(key)] if key else []
    raise InputError(
        f"another machine than that of --host-key answers at {address}: {', '.join(shown) or 'it has no key'}",
        hint="compare once more, at the machine's own console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
    )


def _host_key(address: Address, kind: str) -> paramiko.PKey | None:
    """Ask a machine for its host key of a kind; None if it has none."""
    connection = socket.create_connection((address.dialled, address.port), timeout=SECONDS)
    with contextlib.closing(paramiko.Transport(connection)) as transport:
        transport.banner_timeout = SECONDS
        transport.get_security_options().key_types = ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)
        try:
            transport.start_client(timeout=SECONDS)
        except paramiko.ssh_exception.IncompatiblePeer:
            return None
        return transport.get_remote_server_key()


def _shown(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.fingerprint}"


def _way_out(key: paramiko.PKey) -> str:
    kind = key.get_name().removeprefix("ssh-").partition("-")[0]
    return (
        f"compare with `ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub` at its own console, "
        "then give `--host-key SHA256:…`"
    )
