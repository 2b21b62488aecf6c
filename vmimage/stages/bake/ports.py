"""Ports of its own for each bake."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from vmimage.cache.store import Store
from vmimage.util.errors import HostError
from vmimage.util.ports import taken

# Found free, and taken by QEMU a while later: bakes at the same time need ports of their own.
PORT_SLOTS = 5000
SSH_PORTS_FROM, VNC_PORTS_FROM = 20000, 25000


@dataclass(frozen=True, kw_only=True)
class BakePorts:
    """Ports on localhost: one leads to the guest's sshd; one is free for Packer, which asks for it."""

    ssh: int
    vnc: int


@contextlib.contextmanager
def own_ports(store: Store) -> Iterator[BakePorts]:
    """Give ports that no other bake with this cache has."""
    # Other users have caches of their own: they begin elsewhere.
    first = zlib.crc32(str(store.root).encode())
    for slot in ((first + step) % PORT_SLOTS for step in range(PORT_SLOTS)):
        lock = store.try_lock(f"ports-{slot}")
        if lock:
            with lock:
                ports = BakePorts(ssh=SSH_PORTS_FROM + slot, vnc=VNC_PORTS_FROM + slot)
                if not taken({"ssh": ports.ssh, "vnc": ports.vnc}):
                    yield ports
                    return
    raise HostError(f"{PORT_SLOTS} bakes run already", hint="wait until some have ended")
