"""Ports on localhost: which can be, which are free, and ports of its own for each bake."""

from __future__ import annotations

import contextlib
import socket
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vmimage.errors import HostError, InputError
from vmimage.store import Store

MAX_PORT = 65535

# Found free, and taken by QEMU a while later: bakes at the same time need ports of their own.
PORT_SLOTS = 5000
SSH_PORTS_FROM, VNC_PORTS_FROM = 20000, 25000


def require_port(port: int, option: str) -> None:
    """Check that a number that a user gave can be a port.

    Raises:
        InputError: It cannot.
    """
    if not 0 < port <= MAX_PORT:
        raise InputError(f"{option} {port}: no port", hint=f"1 to {MAX_PORT}")


def taken(ports: Mapping[str, int]) -> list[str]:
    """Return those ports on which something listens."""
    found = []
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found.append(f"{port} ({name})")
    return found


def require_free(ports: Mapping[str, int]) -> None:
    """Check that nothing listens on the ports.

    Raises:
        InputError: There is no such port.
        HostError: Something does; all of them are named.
    """
    for name, port in ports.items():
        require_port(port, f"--{name}-port")
    found = taken(ports)
    if found:
        raise HostError(
            f"in use on localhost: {', '.join(found)}", hint="stop what listens there, or choose others: --ssh-port …"
        )


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Ports of QEMU on localhost: one leads to the guest's sshd, one to the VNC server that Packer insists on."""

    ssh: int
    vnc: int


@contextlib.contextmanager
def own_ports(store: Store) -> Iterator[Ports]:
    """Give ports that no other bake with this cache has."""
    # Other users have caches of their own: they begin elsewhere.
    first = zlib.crc32(str(store.root).encode())
    for slot in ((first + step) % PORT_SLOTS for step in range(PORT_SLOTS)):
        lock = store.try_lock(f"ports-{slot}")
        if lock:
            with lock:
                ports = Ports(ssh=SSH_PORTS_FROM + slot, vnc=VNC_PORTS_FROM + slot)
                if not taken({"ssh": ports.ssh, "vnc": ports.vnc}):
                    yield ports
                    return
    raise HostError(f"{PORT_SLOTS} bakes run already", hint="wait until some have ended")
