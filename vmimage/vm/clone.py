"""A throwaway clone of a disk: booted with a key of its own, reached by ssh as the user dev."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from vmimage.vm.machine import Hardware, Machine, make_overlay, start, write_seed
from vmimage.vm.ssh import KeyPair, connect, make_key, wait_for_ssh

USER = "dev"
SSH_SECONDS = {"kvm": 120.0, "tcg": 420.0}
"""Within which ssh must answer, or the console say more, for each accelerator."""
OVERLAY, SEED = "overlay.qcow2", "seed.iso"


@dataclass(frozen=True)
class Clone:
    """A running clone."""

    machine: Machine
    hardware: Hardware
    key: KeyPair
    begun: float = field(default_factory=time.monotonic)

    @property
    def port(self) -> int:
        """The port on this host's loopback that leads to its sshd."""
        return self.machine.port(22)

    def wait_for_ssh(self) -> float:
        """Wait until its user can log in; returns the seconds since it was switched on.

        Raises:
            VerifyError: It did not answer in time.
        """
        seconds = SSH_SECONDS[self.hardware.accelerator]
        serial = self.machine.serial
        wait_for_ssh(
            self.port,
            USER,
            self.key.private,
            timeout=seconds,
            alive=self.machine.alive,
            progress=lambda: serial.stat().st_size if serial.exists() else 0,
        )
        return time.monotonic() - self.begun

    def log_in(self) -> contextlib.AbstractContextManager[paramiko.SSHClient]:
        """Open a session as its user."""
        return connect(self.port, USER, self.key.private)


@contextlib.contextmanager
def cloned(
    disk: Path, disk_format: str, hardware: Hardware, folder: Path, *, hostname: str, grow_by: int = 0
) -> Iterator[Clone]:
    """Boot a clone for the length of a `with` block; what it wrote is then in `folder`, its private key is not.

    Args:
        hardware: With a forward to port 22.
        grow_by: Bytes by which its disk is larger than the one that it is a clone of.

    Raises:
        HostError: QEMU did not start.
    """
    key = make_key(folder)
    seed, overlay = folder / SEED, folder / OVERLAY
    identity = f"{hostname}-{secrets.token_hex(4)}"
    try:
        write_seed(seed, public_keys=[key.public], hostname=hostname, instance_id=identity)
        make_overlay(disk, disk_format, overlay, grow_by=grow_by)
        with start(hardware, disk=overlay, seed=seed, folder=folder) as machine:
            yield Clone(machine, hardware, key)
    finally:
        key.private.unlink()
