"""Ports that lead from this host's localhost into a machine, and how the machine is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vmimage.util.ports import FORWARDS, Forward, ranges

__all__ = ["FORWARDS", "Forward", "all_forwards", "forwards_text", "smbios_arguments"]

CREDENTIAL = "vmimage.forwards"
"""The guest's systemd hands it to the service that asks for it (guest/dev_env/forwards.py)."""


def all_forwards(ports: Iterable[int]) -> dict[str, Forward]:
    """Return what leads from localhost into a machine: what every machine has, and more ports of its own."""
    return FORWARDS | {f"tcp-{port}": Forward(port, port) for port in ports}


def forwards_text(forwards: Mapping[int, int]) -> str:
    """Return what a guest is told: `22=2222 80=8081 31000-31004 31006`; a number or a range alone is the same on both.

    Args:
        forwards: Guest port -> port on this host's loopback.
    """
    same = sorted(guest for guest, host in forwards.items() if guest == host)
    moved = [f"{guest}={host}" for guest, host in sorted(forwards.items()) if guest != host]
    return " ".join([*moved, *ranges(same).split(", ")]).strip()


def smbios_arguments(forwards: Mapping[int, int]) -> list[str]:
    """Return QEMU's arguments that tell a guest of its forwards, in a string of SMBIOS (type 11).

    Source: https://www.freedesktop.org/software/systemd/man/257/smbios-type-11.html
    """
    return ["-smbios", f"type=11,value=io.systemd.credential:{CREDENTIAL}={forwards_text(forwards)}"]
