"""Ports that lead from this host's localhost into a machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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


def all_forwards(ports: Iterable[int]) -> dict[str, Forward]:
    """Return what leads from localhost into a machine: what every machine has, and more ports of its own."""
    return FORWARDS | {f"tcp-{port}": Forward(port, port) for port in ports}
