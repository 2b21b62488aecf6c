"""The bake itself: Packer boots the disk, its steps run, and what comes out is flattened, checked and sealed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from vmimage import PROJECT
from vmimage.disk.raw import RawDisk
from vmimage.plan import PinFacts
from vmimage.spec.model import SEAL_STEP
from vmimage.stages.bake.layers import Layers
from vmimage.stages.bake.machine import KERNEL_ARGUMENTS, MEMORY_MIB, OVERLAY, PAYLOAD, packer_values
from vmimage.stages.bake.packer import packer, prepare_plugins
from vmimage.stages.bake.payload import MOUNT, write_payload
from vmimage.stages.bake.ports import own_ports
from vmimage.stages.bake.position import Position, failure, require_written
from vmimage.stages.bake.stage import DISK, BakeStage
from vmimage.stages.kept import DISK as KEPT_DISK
from vmimage.stages.kept import keep_disk, write_enter
from vmimage.util.confine import Limits, run_confined
from vmimage.util.console import Step
from vmimage.util.files import disk_use, place
from vmimage.util.render import render
from vmimage.util.run import run
from vmimage.vm.accelerator import Accelerator, acceleration, cpu_model
from vmimage.vm.machine import SERIAL
from vmimage.vm.sandbox import sandbox_arguments
from vmimage.vm.serial import bounded
from vmimage.vm.ssh import answered_port, make_key

TIMEOUT_SECONDS = 3600


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
    pins: dict[str, Mapping[str, PinFacts]] = {layer.script: layer.pins for layer in remaining}
    pins[SEAL_STEP] = {}
    write_payload(bake.image, pins, bake.release_facts, layers.store.file, folder / "payload", folder / PAYLOAD)
    beneath, beneath_format = layers.top
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", beneath, "-F", beneath_format, folder / OVERLAY])
    behind = f", behind {bake.layers[layers.done - 1].step_name}" if layers.done else ""
    step.now(f"boot the base{behind}")
    position = Position(step, folder, layers, {layer.script: layer for layer in remaining})
    with own_ports(layers.store) as ports, answered_port(ports.ssh) as ssh_port, bounded(folder / SERIAL):
        values = packer_values(scripts, base, folder, key, accelerator, ports, ssh_port, sandbox_arguments())
        (folder / "image.pkr.hcl").write_text(render(PROJECT / "packer" / "image.pkr.hcl.j2", values))
        prepare_plugins(folder, step.now)
        done = packer("build", folder, "-color=false", timeout=TIMEOUT_SECONDS, on_line=position.read)
    if done.returncode:
        error = failure(bake.image, position, done.output, folder / SERIAL)
        if keep and layers.kept_all and position.kept.exists():
            error.hint += f"\nlook inside: {_keep(keep, position, layers.top, base, folder, accelerator)}"
        raise error
    require_written(folder / SERIAL)
    disk = work / DISK
    step.now("flatten and check the disk")
    flatten_disk(position.file, disk)
    seal_disk(disk, bake.disk)
    shutil.rmtree(folder)
    step.outcome = f"{len(scripts)} of {len(bake.layers) + 1} steps run, {disk_use(work) >> 20} MiB"
    return {"build_key": key.public, "accelerator": accelerator, "steps": scripts}


def _keep(
    keep: Path, position: Position, beneath: tuple[Path, str], base: Path, folder: Path, accelerator: Accelerator
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


def flatten_disk(overlay: Path, disk: Path) -> None:
    """Write what a machine sees of its disk as a raw file.

    Confined, as all that reads it: steps of the bake ran programs of others as root in that machine.
    """
    convert: list[str | Path] = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, disk]
    run_confined(convert, writable=[disk.parent], limits=Limits(seconds=TIMEOUT_SECONDS))


def seal_disk(disk: Path, size: int) -> None:
    """Check the root file system, drop what its free blocks still hold, give the disk its final size.

    Raises:
        BuildError: The file system has errors.
    """
    root = RawDisk(disk).root
    # Twice: e2fsck discards nothing in a run in which it changed anything, be it the order of a directory.
    for argv in (["e2fsck", "-fy", root], ["e2fsck", "-fy", "-E", "discard", root]):
        run_confined(argv, writable=[disk.parent], limits=Limits(seconds=TIMEOUT_SECONDS))
    with disk.open("r+b") as file:
        file.truncate(size)
    relocate: list[str | Path] = [
        "sfdisk",
        "--quiet",
        "--no-reread",
        "--no-tell-kernel",
        "--relocate",
        "gpt-bak-std",
        disk,
    ]
    run_confined(relocate, writable=[disk.parent])
