"""Ports on localhost: which can be, which lead into a machine, and which are free."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmimage.util.errors import HostError, InputError

MAX_PORT = 65535


@dataclass(frozen=True)
class Forward:
    """A port on the host's loopback that leads to a port of the guest."""

    host: int
    guest: int


FORWARDS = {
    "ssh": Forward(2222, 22),
    "http": Forward(8080, 80),
    "https": Forward(8443, 443),
    "kubernetes": Forward(6443, 6443),
}
"""Of every machine; an image may ask for more (`machine.ports`), see docs/images.md."""


def require_port(port: int, option: str) -> None:
    """Check that a number that a user gave can be a port.

    Raises:
        InputError: It cannot.
    """
    if not 0 < port <= MAX_PORT:
        raise InputError(f"{option} {port}: no port", hint=f"1 to {MAX_PORT}")


def is_taken(port: int) -> bool:
    """Tell whether something listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def ranges(ports: Iterable[int]) -> str:
    """Return ascending ports for people: 31000-31003, 31007."""
    found: list[list[int]] = []
    for port in ports:
        if found and found[-1][-1] == port - 1:
            found[-1][1:] = [port]
        else:
            found.append([port])
    return ", ".join("-".join(map(str, each)) for each in found)


def taken(ports: Mapping[str, int]) -> list[str]:
    """Return those ports on which something listens."""
    return [f"{port} ({name})" for name, port in ports.items() if is_taken(port)]


def require_free(ports: Mapping[str, int]) -> None:
    """Check that nothing listens on the ports.

    Raises:
        InputError: There is no such port, or two are the same.
        HostError: Something does; all of them are named.
    """
    for name, port in ports.items():
        require_port(port, f"--{name}-port")
        twice = next((other for other, same in ports.items() if same == port), name)
        if twice != name:
            raise InputError(f"--{name}-port {port}: --{twice}-port is the same", hint="give each a port of its own")
    found = taken(ports)
    if found:
        raise HostError(
            f"in use on localhost: {', '.join(found)}", hint="stop what listens there, or choose others: --ssh-port …"
        )
