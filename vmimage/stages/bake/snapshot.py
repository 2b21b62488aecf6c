"""Freeze the disk of a running bake: from now on its machine writes to a new file, on top of the one before.

Packer runs this on the host between two provision steps, so a layer costs no boot. The guest has flushed its file
systems before (run-step); what boots from the layer finds the disk of a machine that lost power at that moment, with
nothing to lose but the journal's last entry.

Source: https://qemu.readthedocs.io/en/latest/interop/qemu-qmp-ref.html (blockdev-snapshot-sync)
"""

from __future__ import annotations

import sys

from vmimage.vm.qmp import Monitor

SOCKET = "qmp.sock"
"""In the working directory of Packer, and so of QEMU and of this: a socket's path has at most 107 bytes."""
DRIVE = "root"


def main(script: str, to: str) -> None:
    """Let the machine write to the file `to`, and tell the bake that the layer of a step is complete."""
    monitor = Monitor()
    monitor.connect(SOCKET)
    monitor.command("blockdev-snapshot-sync", **{"device": DRIVE, "snapshot-file": to, "format": "qcow2"})
    monitor.close()
    print(f"vmimage-step: layer {script}", flush=True)  # noqa: T201 - the bake reads it


if __name__ == "__main__":
    main(*sys.argv[1:])
