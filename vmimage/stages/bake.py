"""Bake: base + files + provision/ -> one sealed disk.

Packer boots a copy of the base disk by its kernel, runs the provision steps over ssh and shuts the guest down.
The login key reaches the guest as a systemd credential and lives in a tmpfs there: it is never on the disk.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from vmimage import PROJECT
from vmimage.console import Step
from vmimage.disk import RawDisk, content_digest
from vmimage.errors import BuildError, FetchError, HostError
from vmimage.host import Accelerator, tool_version
from vmimage.machine import cpu_model, qemu_value
from vmimage.packer import packer, plugins_ready, write_plugins_file
from vmimage.plan import Plan
from vmimage.render import render
from vmimage.run import Confine, run, tail
from vmimage.ssh import KeyPair, make_key
from vmimage.store import disk_use, sha256_file

DISK = "disk.raw"
OVERLAY = "overlay.qcow2"
PAYLOAD = "payload.img"
SERIAL = "serial.log"
PAYLOAD_MOUNT = "/run/vmimage"
PAYLOAD_LABEL = "payload"
PAYLOAD_SLACK = 64 << 20
TIMEOUT_SECONDS = 3600
SSH_TIMEOUT = "5m"
MEMORY_MIB = 2048
CPUS = 2

_STEP_LINE = re.compile(r"vmimage-step: (start|done) (\S+)")

# What must never reach the disk is held in memory while baking; see systemd-fstab-generator(8), systemd.mount-extra.
KERNEL_ARGUMENTS = [
    "root=LABEL=root",
    "rw",
    "console=ttyS0",
    # Emulated on a busy host, the timer may tick too late for the kernel's test of it, which then panics.
    "no_timer_check",
    # No more than what answers ssh.
    "systemd.unit=ssh.service",
    "systemd.wants=systemd-networkd.service",
    "cloud-init=disabled",
    "systemd.firstboot=off",
    "systemd.mount-extra=tmpfs:/root/.ssh:tmpfs:mode=0700",
    "systemd.mount-extra=tmpfs:/var/log/journal:tmpfs",
    f"systemd.mount-extra=LABEL={PAYLOAD_LABEL}:{PAYLOAD_MOUNT}:ext4:ro",
]


def qemu_arguments(
    *, kernel: Path, initrd: Path, payload: Path, serial: Path, public_key: str, accelerator: Accelerator
) -> list[tuple[str, str]]:
    """Return the `qemuargs` of a bake; pure. Each flag replaces all that Packer would give for it."""
    key = base64.b64encode(public_key.encode()).decode()
    return [
        ("-kernel", str(kernel)),
        ("-initrd", str(initrd)),
        ("-append", " ".join(KERNEL_ARGUMENTS)),
        ("-cpu", cpu_model(accelerator)),
        # restrict: the guest reaches nothing outside; the forwarded port listens on this host's loopback only.
        ("-netdev", "user,id=user.0,restrict=on,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22"),
        ("-device", "virtio-net-pci,netdev=user.0"),
        ("-device", "virtio-rng-pci"),
        ("-device", "virtio-blk-pci,drive=payload"),
        (
            "-blockdev",
            f"driver=raw,node-name=payload,read-only=on,file.driver=file,file.filename={qemu_value(payload)}",
        ),
        ("-serial", f"file:{serial}"),
        ("-smbios", f"type=11,value=io.systemd.credential.binary:ssh.authorized_keys.root={key}"),
        ("-vga", "none"),
        ("-display", "none"),
    ]


def packer_values(
    plan: Plan, base: Path, folder: Path, output: Path, key: KeyPair, accelerator: Accelerator
) -> dict[str, object]:
    """Return what packer/image.pkr.hcl.j2 is rendered with; pure.

    Args:
        folder: Holds the overlay and the payload disk, and takes the serial log.
    """
    return {
        "overlay": str(folder / OVERLAY),
        "output_directory": str(output),
        "disk_name": OVERLAY,
        "accelerator": accelerator,
        "cpus": CPUS,
        "memory_mib": MEMORY_MIB,
        "private_key": str(key.private),
        "ssh_timeout": SSH_TIMEOUT,
        "payload": PAYLOAD_MOUNT,
        "steps": plan.steps,
        "qemuargs": qemu_arguments(
            kernel=base / "vmlinuz",
            initrd=base / "initrd.img",
            payload=folder / PAYLOAD,
            serial=folder / SERIAL,
            public_key=key.public,
            accelerator=accelerator,
        ),
    }


def make_bake(
    plan: Plan, base: Path, files: Mapping[str, Path], work: Path, accelerator: Accelerator, step: Step
) -> Mapping[str, object]:
    """Make the sealed disk.raw in `work`.

    Args:
        base: Folder of the base stage's result.
        files: Pin name -> verified file.

    Raises:
        BuildError: A step failed; its output comes first.
    """
    folder = work / "packer"
    folder.mkdir()
    key = make_key(folder)
    step.now("write the payload disk")
    write_payload(plan, files, folder / "payload", folder / PAYLOAD)
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base / DISK, "-F", "raw", folder / OVERLAY])
    values = packer_values(plan, base, folder, work / "output", key, accelerator)
    (folder / "image.pkr.hcl").write_text(render(PROJECT / "packer" / "image.pkr.hcl.j2", values))
    _prepare_plugins(folder, step)

    step.now("boot the base")
    position = _Position(step)
    done = packer("build", folder, "-color=false", timeout=TIMEOUT_SECONDS, on_line=position.read)
    if done.returncode:
        raise _failure(position, done.output, folder / SERIAL)
    disk = work / DISK
    step.now("flatten and check the disk")
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", work / "output" / OVERLAY, disk])
    seal_disk(disk, plan.disk_bytes)
    for leftover in (folder, work / "output"):
        shutil.rmtree(leftover)
    step.outcome = f"{len(plan.steps)} steps, {disk_use(work) >> 20} MiB"
    return {"build_key": key.public, "accelerator": accelerator, "disk_sha256": content_digest(disk)}


class _Position:
    """Where the guest is, read from Packer's output."""

    def __init__(self, step: Step) -> None:
        self.current = ""
        self.output: list[str] = []
        self._failed = False
        self._step = step

    def read(self, line: str) -> None:
        match = _STEP_LINE.search(line)
        if match and match[1] == "start":
            self.current, self.output = match[2], []
            self._step.now(match[2].removesuffix(".sh"))
        elif match:
            self.current = ""
        elif "Provisioning step had errors" in line:
            self._failed = True
        elif self.current and not self._failed:
            self.output.append(line.strip().removeprefix("qemu.image: ").removeprefix("==> qemu.image: "))


def _failure(position: _Position, output: str, serial: Path) -> BuildError:
    if position.current:
        said = "\n".join(position.output)
        return BuildError(
            f"provision/{position.current} failed:{tail(said)}",
            hint="correct the step; the base and the fetched files are kept, only the bake runs again",
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


def write_payload(plan: Plan, files: Mapping[str, Path], folder: Path, image: Path) -> None:
    """Write the disk that carries scripts and big files into the guest, read-only there.

    Raises:
        FetchError: A file in the cache is no longer what was pinned.
    """
    provision = PROJECT / "provision"
    for name in ("pins", "provision", "files"):
        (folder / name).mkdir(parents=True)
    for pin in plan.files:
        to = folder / "pins" / pin.name
        shutil.copyfile(files[pin.name], to)
        if sha256_file(to) != pin.sha256:
            files[pin.name].unlink()
            raise FetchError(f"{files[pin.name]} was damaged in the cache, and removed", hint="run the command again")
    shutil.copy(provision / "run-step", folder / "run-step")
    for step in plan.steps:
        shutil.copy(provision / step, folder / "provision" / step)
        overlay = provision / "files" / step.removesuffix(".sh")
        if overlay.is_dir():
            shutil.copytree(overlay, folder / "files" / overlay.name, symlinks=True)
    (folder / "release.json").write_text(json.dumps(release_facts(plan), indent=2) + "\n")
    (folder / "env").write_text(environment(plan))
    size = disk_use(folder) * 11 // 10 + PAYLOAD_SLACK
    ext4 = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", PAYLOAD_LABEL]
    run([*ext4, "-d", folder, image, f"{size // 1024}k"], confine=Confine.FAKE_ROOT)
    shutil.rmtree(folder)


def release_facts(plan: Plan) -> dict[str, object]:
    """Return what the image says of itself in /etc/vmimage/release.json."""
    return {
        "image": plan.name,
        "summary": plan.image.summary,
        "components": list(plan.image.components),
        "versions": plan.versions,
        "build": plan.bake_stage.key,
    }


def environment(plan: Plan) -> str:
    """Return the shell variables that every provision step has."""
    values = {
        "PAYLOAD": PAYLOAD_MOUNT,
        "PINS": f"{PAYLOAD_MOUNT}/pins",
        "DEBIAN_FRONTEND": "noninteractive",
        **{f"{name.upper().replace('-', '_')}_VERSION": version for name, version in plan.versions.items()},
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


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
