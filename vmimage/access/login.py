"""A machine that runs somewhere, as its user reaches it: by ssh, usually through a port of localhost."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.auth_strategy import AuthSource, AuthStrategy, InMemoryPrivateKey

from vmimage.access.hostname import require_host
from vmimage.access.identities import Identities, find_identities
from vmimage.access.known_hosts import KINDS, host_name, known_keys, parse_fingerprint, record
from vmimage.access.ssh_config import key_settings
from vmimage.util.errors import HostError, InputError
from vmimage.util.ports import require_port
from vmimage.vm import bounded
from vmimage.vm.limits import ANSWER_BYTES, LOGIN_SECONDS

USER = "dev"
SECONDS = LOGIN_SECONDS
OFFER_SECONDS = 60.0
SHOWN_KEYS = 8


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a machine answers ssh, and who logs in.

    Attributes:
        key: A private key; when not given, those of the ssh agent, of ~/.ssh/config, or the usual files.
        host_key: The fingerprint of a host key that the machine must have, whatever was known before.
    """

    host: str = "127.0.0.1"
    port: int = 2222
    user: str = USER
    key: Path | None = None
    host_key: str | None = None

    def __post_init__(self) -> None:
        require_host(self.host, "--host")
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
def log_in(
    address: Address, known_hosts: Path, warn: Callable[[str], object] = lambda _: None
) -> Iterator[paramiko.SSHClient]:
    """Open an ssh session with a machine whose host key is known, or confirmed by its fingerprint.

    Anybody on this host can listen on a port before the machine does, so an unknown key is never believed.

    Args:
        known_hosts: The file of known keys; a confirmed one is recorded there.
        warn: Called for problems that do not stop us: in the file of known keys, ~/.ssh/config or the agent.

    Raises:
        InputError: The host key is unknown or has changed, or the machine accepts none of our keys.
        HostError: Nothing answers there, or something that is not an ssh server.
    """
    name = host_name(address.dialled, address.port)
    known = known_keys(known_hosts, name, warn)
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
    settings = key_settings(address.host, Path.home(), warn)
    with (
        find_identities(address.key, settings, os.environ, Path.home(), warn) as identities,
        contextlib.closing(_dialled(address)) as connection,
        contextlib.closing(client),
    ):
        try:
            with _answering(address, client.get_transport):
                client.connect(
                    address.dialled,
                    address.port,
                    address.user,
                    sock=connection,
                    timeout=SECONDS,
                    banner_timeout=SECONDS,
                    auth_timeout=SECONDS,
                    transport_factory=bounded.transport,
                    auth_strategy=_Offer(address.user, identities),
                )
        except paramiko.AuthenticationException as error:
            raise _refused(address, identities, client.get_transport()) from error
        _require_let_in(address, client)
        yield client


class _Offer(AuthStrategy):
    """Offers keys one after another, as long as somebody would wait."""

    def __init__(self, user: str, identities: Identities) -> None:
        super().__init__(ssh_config=paramiko.SSHConfig())
        self._user, self._identities = user, identities

    def get_sources(self) -> Iterator[AuthSource]:
        """Yield them."""
        end = time.monotonic() + OFFER_SECONDS
        for _, key in self._identities.usable:
            if time.monotonic() < end:
                yield InMemoryPrivateKey(self._user, key)


def _refused(address: Address, identities: Identities, transport: paramiko.Transport | None) -> InputError:
    """Return the error that tells which keys were offered, and which could not be."""
    offered = [f"offered: {name}, {key.fingerprint}" for name, key in identities.usable]
    unusable = [f"not offered: {each}" for each in identities.unusable]
    told = "".join(f"\n    {line}" for line in (*offered[:SHOWN_KEYS], *unusable[:SHOWN_KEYS]))
    if not offered:
        message = f"none of your keys can be offered to {address}" if unusable else f"you have no key for {address}"
        hint = "`ssh-keygen -t ed25519` makes one, which `invoke seed` gives to a machine; --ssh-key names another"
        return InputError(f"{message}{told}", hint=hint)
    if not (transport and transport.is_active()):
        return InputError(
            f"{address} hung up before one of your keys was let in{told}",
            hint="a machine takes six at most: name the one that it knows with --ssh-key",
        )
    return InputError(
        f"{address} lets none of your keys in{told}", hint="name the private key that it knows with --ssh-key"
    )


def _require_let_in(address: Address, client: paramiko.SSHClient) -> None:
    transport = client.get_transport()
    if transport and not transport.is_authenticated():
        raise InputError(f"{address} asks for more than a key", hint="vmimage's machines do not: is it yours?")


def read_answer(channel: paramiko.Channel, *, seconds: float) -> tuple[int, str, str]:
    """Wait until a command in the machine has ended; returns its exit status, its output and its errors.

    Raises:
        TimeoutError: It takes longer.
        HostError: It says more than our commands do; a machine may go on for ever.
    """
    end = time.monotonic() + seconds
    texts = []
    for receive in (channel.recv, channel.recv_stderr):
        data = bounded.read_all(channel, receive, limit=ANSWER_BYTES, end=end)
        if len(data) > ANSWER_BYTES:
            raise HostError(f"the machine answers with more than {ANSWER_BYTES >> 10} KiB", hint="is it yours?")
        texts.append(data.decode(errors="replace"))
    output, errors = texts
    return bounded.exit_status(channel, end - time.monotonic()), output, errors


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


def _dialled(address: Address) -> socket.socket:
    """Connect to a machine.

    Raises:
        HostError: Nothing listens there.
    """
    try:
        return socket.create_connection((address.dialled, address.port), timeout=SECONDS)
    # Names that are none: ValueError.
    except (OSError, ValueError) as error:
        raise _nobody(address, error) from error


def _nobody(address: Address, error: Exception) -> HostError:
    return HostError(
        f"no machine answers ssh at {address}: {str(error) or 'it says nothing'}",
        hint="start one (`invoke run`, VirtualBox, …), or name its port with --ssh-port",
    )


@contextlib.contextmanager
def _answering(address: Address, transport: Callable[[], paramiko.Transport | None]) -> Iterator[None]:
    """Turn failures of an ssh connection into errors with a hint; an authentication failure passes unchanged."""
    try:
        yield
    except paramiko.BadHostKeyException as error:
        raise InputError(
            f"another machine than before answers at {address}: {_shown(error.key)}",
            hint=f"if it is a new machine of yours, {_way_out(error.key)}, which replaces the old one",
        ) from error
    except paramiko.AuthenticationException:
        raise
    # Keys that are none: ValueError, OverflowError.
    except (OSError, EOFError, ValueError, OverflowError, paramiko.SSHException) as error:
        session = transport()
        if session is None or not session.remote_version:
            raise _nobody(address, error) from error
        raise HostError(
            f"{address} answers, but not as an ssh server of a machine does: {str(error) or 'it hung up'}",
            hint="is it still starting? Try again in a minute. Else see that it is yours (--ssh-port)",
        ) from error


def _confirmed(address: Address, fingerprint: str) -> paramiko.PKey:
    """Return the machine's host key that has a fingerprint; a machine shows one kind of key a connection.

    Raises:
        InputError: It has no such key.
    """
    shown = []
    for kind in KINDS:
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
    connection = _dialled(address)
    with contextlib.closing(connection), contextlib.closing(bounded.transport(connection)) as transport:
        transport.banner_timeout = SECONDS
        transport.get_security_options().key_types = ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)
        with _answering(address, lambda: transport):
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
