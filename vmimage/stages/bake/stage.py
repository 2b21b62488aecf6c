"""Bake: base + files + provision/ -> one sealed disk.

Packer boots the base disk, or the layer behind the last step that was done before (layers.py), by its kernel, runs the
remaining provision steps over ssh and shuts the guest down. All writes go to files on top.
The login key reaches the guest as a systemd credential and lives in a tmpfs there: it is never on the disk.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmimage import PROJECT
from vmimage.disk.raw import RawDisk
from vmimage.host import tool_version
from vmimage.plan import Plan, digests, guest_values, machine_files, step_files
from vmimage.spec.model import SEAL_STEP
from vmimage.stages.bake.layers import EDITION, Layer, Layers, layers_of
from vmimage.stages.bake.packer import packer, plugins_ready, write_plugins_file
from vmimage.stages.bake.payload import LABEL, MOUNT, write_payload
from vmimage.stages.bake.ports import BakePorts, own_ports
from vmimage.stages.bake.snapshot import DRIVE, SOCKET
from vmimage.stages.base import BaseStage
from vmimage.stages.kept import DISK as KEPT_DISK
from vmimage.stages.kept import keep_disk, write_enter
from vmimage.stages.stage import StoredStage, planned
from vmimage.util.console import Step
from vmimage.util.errors import BuildError, HostError
from vmimage.util.files import disk_use, place
from vmimage.util.render import render
from vmimage.util.run import run, tail
from vmimage.vm.accelerator import Accelerator, acceleration, cpu_model, machine_cpus
from vmimage.vm.machine import qemu_value
from vmimage.vm.ssh import KeyPair, answered_port, make_key

DISK = "disk.raw"
OVERLAY = "overlay.qcow2"
PAYLOAD = "payload.img"
SERIAL = "serial.log"
OUTPUT = "output"
TIMEOUT_SECONDS = 3600
SSH_TIMEOUT = "5m"
MEMORY_MIB = 2048
CPUS = 2

VNC_BASE = 5900

_STEP_LINE = re.compile(r"vmimage-step: (start|done|layer) (\S+)")


@dataclass(frozen=True, kw_only=True)
class BakeStage(StoredStage):
    """The sealed disk of an image.

    Attributes:
        after: The layer of the last step, or the base where there is no step.
        disk: Bytes that it has in the end.
        facts: What the image says of itself.
        files: Digests of the project's files that the machine and the seal are made from.
    """

    name = "bake"
    edition = EDITION

    image: str
    disk: int
    facts: Mapping[str, object]
    files: Mapping[str, str]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of its steps, the lowest first."""
        found = list[Layer]()
        below = self.after
        while isinstance(below, Layer):
            found.insert(0, below)
            below = below.after
        return tuple(found)

    @property
    def made_from(self) -> StoredStage | None:
        """The base: its layers are made, or found, while it is made itself."""
        base = self.layers[0].after if self.layers else self.after
        assert isinstance(base, BaseStage)  # noqa: S101 - `bake_stage` builds nothing else
        return base

    @property
    def release_facts(self) -> Mapping[str, object]:
        """What the image says of itself in /etc/vmimage/release.json."""
        return {"image": self.image, **self.facts, "build": self.key}

    @property
    def why(self) -> str:
        return f"{len(self.layers)} steps: {', '.join(layer.step_name for layer in self.layers)}"

    def make(self, work: Path, step: Step) -> Mapping[str, object]:
        context = self.context
        assert self.made_from  # noqa: S101 - the base
        base = self.made_from.result
        with contextlib.closing(Layers(self.layers, base, context.store, step, start=context.start_step)) as layers:
            return make_bake(self, base.path, layers, work, context.accelerator(), step, keep=context.keep)

    def planned(self) -> Iterator[tuple[str, str, str]]:
        store, there = self.context.store, self.find()
        assert self.made_from  # noqa: S101 - the base
        below = self.made_from.find()
        for layer in self.layers:
            below = store.find(layer.name, layer.inputs, below=below) if below else None
            name, state, why = planned(layer, layer.step_name, below, store)
            # A layer that is not there is only made for a bake that is not there.
            yield name, "unused" if there and state == "make" else state, why
        yield planned(self, "seal", there, store)


def bake_stage(plan: Plan, base: BaseStage) -> BakeStage:
    """Return the sealed disk of an image, made from its base."""
    layers = layers_of(plan, base)
    files = [*machine_files(plan.project), *step_files(plan.project, SEAL_STEP)]
    return BakeStage(
        context=base.context,
        after=layers[-1] if layers else base,
        image=plan.name,
        disk=plan.disk_bytes,
        facts={
            "summary": plan.image.summary,
            "components": list(plan.image.components),
            "versions": plan.versions,
        },
        files=digests(plan.project, files, guest_values(plan.name)),
    )


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
) -> list[tuple[str, str]]:
    """Return the `qemuargs` of a bake; pure. Each flag replaces all that Packer would give for it."""
    key = base64.b64encode(public_key.encode()).decode()
    return [
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
        ("-serial", f"file:{serial}"),
        ("-smbios", f"type=11,value=io.systemd.credential.binary:ssh.authorized_keys.root={key}"),
        # Packer 1.6.6 would count its displays from the start of the range that it was given.
        ("-vnc", f"127.0.0.1:{ports.vnc - VNC_BASE}"),
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
) -> dict[str, object]:
    """Return what packer/image.pkr.hcl.j2 is rendered with.

    Args:
        scripts: The steps to run, the seal as the last.
        folder: Holds the overlay and the payload disk, and takes the serial log and what the machine writes.
        ssh_port: Where Packer connects to.
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
        ),
    }


def frozen(folder: Path, script: str) -> Path:
    """Return the file to which the machine writes when the disk as it is after a step has been frozen."""
    return folder / f"after-{script.removesuffix('.sh')}.qcow2"


def make_bake(
    bake: BakeStage,
    base: Path,
    layers: Layers,
    work: Path,
    accelerator: Accelerator,
    step: Step,
    *,
    keep: Path | None = None,
) -> Mapping[str, object]:
    """Make the sealed disk.raw in `work`.

    Args:
        base: Folder of the base stage's result.
        layers: Where to begin, and what takes the disk after each step.
        keep: Where a failed bake's disk goes, ready to be opened.

    Raises:
        BuildError: A step failed; its output comes first.
    """
    folder = work / "packer"
    folder.mkdir()
    key = make_key(folder)
    remaining = bake.layers[layers.done :]
    scripts = [*(layer.script for layer in remaining), SEAL_STEP]
    step.now("write the payload disk")
    pins: dict[str, Mapping[str, Mapping[str, str]]] = {layer.script: layer.pins for layer in remaining}
    pins[SEAL_STEP] = {}
    write_payload(bake.image, pins, bake.release_facts, layers.store.file, folder / "payload", folder / PAYLOAD)
    beneath, beneath_format = layers.top
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", beneath, "-F", beneath_format, folder / OVERLAY])
    behind = f", behind {bake.layers[layers.done - 1].step_name}" if layers.done else ""
    step.now(f"boot the base{behind}")
    position = _Position(step, folder, layers, {layer.script: layer for layer in remaining})
    with own_ports(layers.store) as ports, answered_port(ports.ssh) as ssh_port:
        values = packer_values(scripts, base, folder, key, accelerator, ports, ssh_port)
        (folder / "image.pkr.hcl").write_text(render(PROJECT / "packer" / "image.pkr.hcl.j2", values))
        _prepare_plugins(folder, step)
        done = packer("build", folder, "-color=false", timeout=TIMEOUT_SECONDS, on_line=position.read)
    if done.returncode:
        error = _failure(bake.image, position, done.output, folder / SERIAL)
        if keep and layers.kept_all and position.kept.exists():
            error.hint += f"\nlook inside: {_keep(keep, position, layers.top, base, folder, accelerator)}"
        raise error
    require_written(folder / SERIAL)
    disk = work / DISK
    step.now("flatten and check the disk")
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", position.file, disk])
    seal_disk(disk, bake.disk)
    shutil.rmtree(folder)
    step.outcome = f"{len(scripts)} of {len(bake.layers) + 1} steps run, {disk_use(work) >> 20} MiB"
    return {"build_key": key.public, "accelerator": accelerator, "steps": scripts}


def require_written(serial: Path) -> None:
    """Check that the guest lost no write: steps do not notice, and this host's disk may have room again.

    Args:
        serial: What the guest's kernel said.

    Raises:
        BuildError: It did.
    """
    said = serial.read_text(errors="replace") if serial.exists() else ""
    lost = re.search(r"I/O error, dev vd.*", said)
    if lost:
        raise BuildError(
            f"the guest could not write to its disk: {lost[0].strip()}",
            hint="is there room for the cache, and is its disk sound? then run the command again",
        )


class _Position:
    """Where the guest is, read from Packer's output.

    Attributes:
        current: The script that runs, if any.
        output: What it has said.
        file: The file that the machine writes to.
    """

    def __init__(self, step: Step, folder: Path, layers: Layers, wanted: Mapping[str, Layer]) -> None:
        self.current = ""
        self.output: list[str] = []
        self.file = folder / OUTPUT / OVERLAY
        self._folder = folder
        self._layers = layers
        self._wanted = wanted
        self._failed = False
        self._step = step

    @property
    def kept(self) -> Path:
        """The same file, under a name that Packer does not remove when a step fails."""
        return self._folder / "first.qcow2" if self.file.name == OVERLAY else self.file

    def read(self, line: str) -> None:
        match = _STEP_LINE.search(line)
        if match and match[1] == "start":
            if self.kept != self.file:
                os.link(self.file, self.kept)
            self.current, self.output = match[2], []
            self._step.now(match[2].removesuffix(".sh"))
        elif match and match[1] == "layer":
            require_written(self._folder / SERIAL)
            self._layers.add(self._wanted[match[2]], self.file)
            self.file = frozen(self._folder, match[2])
        elif match:
            self.current = ""
        elif "Provisioning step had errors" in line:
            self._failed = True
        elif self.current and not self._failed:
            self.output.append(line.strip().removeprefix("qemu.image: ").removeprefix("==> qemu.image: "))


def _failure(image: str, position: _Position, output: str, serial: Path) -> BuildError:
    if position.current:
        said = "\n".join(position.output)
        return BuildError(
            f"provision/{position.current} failed:{tail(said)}",
            hint=f"repeat it: invoke build-image {image}    (begins with this step; --keep-failed keeps its machine)",
        )
    console = serial.read_text(errors="replace") if serial.exists() else ""
    return BuildError(f"Packer failed:{tail(output)}\n  the guest's console ends with:{tail(console)}")


def _prepare_plugins(folder: Path, step: Step) -> None:
    """Let Packer 1.11 and later have the qemu plugin: the one that is installed, else `packer init`."""
    version = tool_version("packer")
    write_plugins_file(PROJECT / "packer", folder, version)
    if plugins_ready(folder, version):
        return
    step.now("install Packer's qemu plugin (packer init)")
    done = packer("init", folder, timeout=300)
    if done.returncode:
        raise HostError(
            f"Packer {version} needs its qemu plugin, and `packer init` failed:{tail(done.output, 6)}",
            hint="without internet: `packer plugins install --path FILE github.com/hashicorp/qemu`",
        )


def _keep(
    keep: Path, position: _Position, beneath: tuple[Path, str], base: Path, folder: Path, accelerator: Accelerator
) -> Path:
    """Keep the disk of a failed bake and the payload; returns the script that starts them."""
    kept = keep_disk(position.kept, beneath, keep)
    # By itself: what it stands on may be removed from the cache before.
    run(["qemu-img", "rebase", "-f", "qcow2", "-b", "", kept])
    for file in (base / "vmlinuz", base / "initrd.img", folder / PAYLOAD):
        place(file, keep / file.name)
    command = ["qemu-system-x86_64", "-machine", "pc", "-accel", acceleration(accelerator), "-m", str(MEMORY_MIB)]
    command += ["-cpu", cpu_model(accelerator), "-nographic", "-no-reboot"]
    command += ["-kernel", "vmlinuz", "-initrd", "initrd.img"]
    command += ["-append", " ".join([*KERNEL_ARGUMENTS, "systemd.debug_shell=ttyS0"])]
    for drive in (f"file={KEPT_DISK},format=qcow2", f"file={PAYLOAD},format=raw,readonly=on"):
        command += ["-drive", f"{drive},if=virtio"]
    script = position.current or "SCRIPT"
    return write_enter(
        keep,
        command,
        f"The machine in which provision/{script} failed; a root shell on its console, without a network.",
        [f"There, once the boot has ended, {MOUNT}/run-step {script} repeats the step. Ctrl-A X switches it off."],
    )


def seal_disk(disk: Path, size: int) -> None:
    """Check the root file system, drop what its free blocks still hold, give the disk its final size.

    Raises:
        BuildError: The file system has errors.
    """
    root = RawDisk(disk).root
    # Twice: e2fsck discards nothing in a run in which it changed anything, be it the order of a directory.
    run(["e2fsck", "-fy", root])
    run(["e2fsck", "-fy", "-E", "discard", root])
    with disk.open("r+b") as file:
        file.truncate(size)
    run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--relocate", "gpt-bak-std", disk])
