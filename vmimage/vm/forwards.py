"""Ports that lead from this host's localhost into a machine."""

from __future__ import annotations

from collections.abc import Iterable

from vmimage.util.ports import FORWARDS, Forward

__all__ = ["FORWARDS", "Forward", "all_forwards"]


def all_forwards(ports: Iterable[int]) -> dict[str, Forward]:
    """Return what leads from localhost into a machine: what every machine has, and more ports of its own."""
    return FORWARDS | {f"tcp-{port}": Forward(port, port) for port in ports}
