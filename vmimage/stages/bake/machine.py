"""The machine of a bake, as Packer is told to start it."""

from __future__ import annotations

import base64
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vmimage.stages.bake.payload import LABEL, MOUNT
from vmimage.stages.bake.ports import BakePorts
from vmimage.stages.bake.snapshot import DRIVE, SOCKET
from vmimage.vm.accelerator import Accelerator, cpu_model, machine_cpus
from vmimage.vm.machine import SERIAL, appended, qemu_value
from vmimage.vm.ssh import KeyPair

OVERLAY = "overlay.qcow2"
PAYLOAD = "payload.img"
OUTPUT = "output"
SSH_TIMEOUT = "5m"
MEMORY_MIB = 2048
CPUS = 2

UNNEEDED = [
    *(f"modprobe@{module}.service" for module in ("configfs", "dm_mod", "drm", "efi_pstore", "fuse", "loop")),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "proc-sys-fs-binfmt_misc.automount"),
    # The bootloader's step mounts it.
    "boot-efi.mount",
    *("open-vm-tools.service", "vgauth.service"),
    *("systemd-binfmt.service", "systemd-journal-flush.service", "systemd-modules-load.service"),
    *("systemd-network-generator.service", "systemd-networkd-persistent-storage.service", "systemd-pstore.service"),
    *("systemd-random-seed.service", "systemd-resolved.service", "systemd-sysctl.service", "systemd-timesyncd.service"),
]
"""Units that the base starts before ssh.service and a bake does without."""

# What must never reach the disk is held in memory while baking; see systemd-fstab-generator(8), systemd.mount-extra.
KERNEL_ARGUMENTS = [
    "root=LABEL=root",
    "rw",
    "console=ttyS0",
    # Emulated on a busy host, the timer may tick too late for the kernel's test of it, which then panics.
    "no_timer_check",
    # What a user of a machine needs, and emulation pays for: no attack is to be feared from the steps of a bake.
    "mitigations=off",
    "init_on_alloc=0",
    # No more than what answers ssh.
    "systemd.unit=ssh.service",
    "systemd.wants=systemd-networkd.service",
    "cloud-init=disabled",
    "systemd.firstboot=off",
    "systemd.ssh_auto=no",
    # Emulated, each takes a good part of a second. Masked for this boot only: nothing of it is on the disk.
    *(f"systemd.mask={unit}" for unit in UNNEEDED),
    "systemd.mount-extra=tmpfs:/root/.ssh:tmpfs:mode=0700",
    "systemd.mount-extra=tmpfs:/var/log/journal:tmpfs",
    f"systemd.mount-extra=LABEL={LABEL}:{MOUNT}:ext4:ro",
]


def qemu_arguments(
    *,
    kernel: Path,
    initrd: Path,
    disk: Path,
    payload: Path,
    serial: Path,
    public_key: str,
    accelerator: Accelerator,
    ports: BakePorts,
    sandbox: Sequence[str] = (),
) -> list[tuple[str, ...]]:
    """Return the `qemuargs` of a bake; pure. Each flag replaces all that Packer would give for it.

    Args:
        sandbox: QEMU's arguments that confine it, if it can be.
    """
    key = base64.b64encode(public_key.encode()).decode()
    return [
        # By default QEMU has a monitor, which runs programs, on any display; and what /etc/qemu tells it.
        ("-nodefaults",),
        ("-no-user-config",),
        ("-monitor", "none"),
        *([tuple(sandbox)] if sandbox else []),
        ("-kernel", str(kernel)),
        ("-initrd", str(initrd)),
        ("-append", " ".join(KERNEL_ARGUMENTS)),
        ("-cpu", cpu_model(accelerator)),
        # restrict: the guest reaches nothing outside; the forwarded port listens on this host's loopback only.
        ("-netdev", f"user,id=user.0,restrict=on,hostfwd=tcp:127.0.0.1:{ports.ssh}-:22"),
        ("-device", "virtio-net-pci,netdev=user.0"),
        ("-device", "virtio-rng-pci"),
        # A full disk of the host is an error at once; by default QEMU would stop the machine and wait for room.
        (
            "-drive",
            f"file={qemu_value(disk)},if=none,id={DRIVE},format=qcow2,cache=unsafe,discard=unmap,"
            "detect-zeroes=unmap,werror=report",
        ),
        ("-device", f"virtio-blk-pci,drive={DRIVE}"),
        ("-qmp", f"unix:{SOCKET},server=on,wait=off"),
        ("-device", "virtio-blk-pci,drive=payload"),
        (
            "-blockdev",
            f"driver=raw,node-name=payload,read-only=on,file.driver=file,file.filename={qemu_value(payload)}",
        ),
        ("-chardev", appended("console", serial)),
        ("-serial", "chardev:console"),
        ("-smbios", f"type=11,value=io.systemd.credential.binary:ssh.authorized_keys.root={key}"),
        # Any user of this host could type into a server that Packer starts; see `disable_vnc` in the template.
        ("-vnc", "none"),
        ("-vga", "none"),
        ("-display", "none"),
    ]


def packer_values(
    scripts: Sequence[str],
    base: Path,
    folder: Path,
    key: KeyPair,
    accelerator: Accelerator,
    ports: BakePorts,
    ssh_port: int,
    sandbox: Sequence[str] = (),
) -> dict[str, object]:
    """Return what packer/image.pkr.hcl.j2 is rendered with.

    Args:
        scripts: The steps to run, the seal as the last.
        folder: Holds the overlay and the payload disk, and takes the serial log and what the machine writes.
        ssh_port: Where Packer connects to.
        sandbox: QEMU's arguments that confine it, if it can be.
    """
    return {
        "overlay": str(folder / OVERLAY),
        "output_directory": str(folder / OUTPUT),
        "disk_name": OVERLAY,
        "accelerator": accelerator,
        "cpus": machine_cpus(CPUS, accelerator),
        "memory_mib": MEMORY_MIB,
        "private_key": str(key.private),
        "ssh_timeout": SSH_TIMEOUT,
        "ssh_port": ssh_port,
        "vnc_port": ports.vnc,
        "payload": MOUNT,
        "scripts": scripts,
        "snapshot": shlex.join([sys.executable, "-m", "vmimage.stages.bake.snapshot"]),
        "after": {script: str(frozen(folder, script)) for script in scripts[:-1]},
        "qemuargs": qemu_arguments(
            kernel=base / "vmlinuz",
            initrd=base / "initrd.img",
            disk=folder / OUTPUT / OVERLAY,
            payload=folder / PAYLOAD,
            serial=folder / SERIAL,
            public_key=key.public,
            accelerator=accelerator,
            ports=ports,
            sandbox=sandbox,
        ),
    }


def frozen(folder: Path, script: str) -> Path:
    """Return the file to which the machine writes when the disk as it is after a step has been frozen."""
    return folder / f"after-{script.removesuffix('.sh')}.qcow2"
