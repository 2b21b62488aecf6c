"""Ports on localhost: which can be, and which are free."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from vmimage.util.errors import HostError, InputError

MAX_PORT = 65535


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
