"""The peer of `invoke bench build`: plain Packer (templates/peer) makes the same image without this project.

It does so twice: from a disk with what boots and answers ssh, all other packages by apt, and from a disk with what a
cloud image has. Where a choice had to be made, it is in the peer's favour: these disks are made for it outside the
measured time, hold nothing that the image has not, and boot by their kernel into ssh alone. What only our own bake
does, masking single units and telling the kernel to spare emulation some work, is part of what is compared.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmimage import PROJECT
from vmimage.formats.format import Opened
from vmimage.plan import Plan, laid_files, overlays
from vmimage.spec.model import size_bytes
from vmimage.stages import base as base_stage
from vmimage.stages.bake.packer import packer, prepare_plugins
from vmimage.stages.base import BaseStage
from vmimage.stages.verify.matrix import Boot
from vmimage.util.console import Step
from vmimage.util.errors import BuildError, VerifyError
from vmimage.util.run import Completed, run
from vmimage.vm.accelerator import Accelerator, cpu_model, machine_cpus
from vmimage.vm.clone import SSH_SECONDS, cloned
from vmimage.vm.machine import Hardware, console_end
from vmimage.vm.ssh import KeyPair, make_key

TEMPLATES = PROJECT / "templates" / "peer"
OUTPUT = "out"
TIMEOUT_SECONDS = 7200
MEMORY_MIB = 2048
CPUS = 2

# Packages that images may ask for and Debian's `generic` cloud image has: the peer gets them without paying.
# Source: package_config/ of https://salsa.debian.org/cloud-team/debian-cloud-images
CLOUD_IMAGE = frozenset("""
bash-completion ca-certificates cloud-init curl dbus dosfstools e2fsprogs grub-efi-amd64-bin grub-pc-bin grub2-common
initramfs-tools iproute2 iputils-ping kmod less libpam-systemd linux-image-amd64 nano openssh-server procps sudo
systemd-resolved systemd-sysv systemd-timesyncd udev vim-tiny zstd
""".split())  # fmt: skip  # noqa: SIM905 - to be read as a list


# What boots, reaches a network and answers ssh. The rest of an image is what apt installs in the guest.
MINIMAL = frozenset(
    ["e2fsprogs", "initramfs-tools", "linux-image-amd64", "openssh-server", "systemd-sysv", "udev", "zstd"]
)


@dataclass(frozen=True, kw_only=True)
class StartDisk:
    """What a peer starts from.

    Attributes:
        given: Packages that are in its base disk.
        hook: What customizes that disk. With another than that of our own base, the guest runs ours (provision/base.sh)
            behind its packages.
    """

    given: frozenset[str]
    hook: Path = base_stage.HOOK

    @property
    def customized(self) -> bool:
        """Whether the base disk has had provision/base.sh."""
        return self.hook == base_stage.HOOK


STARTS = {
    "all by apt": StartDisk(given=MINIMAL, hook=TEMPLATES / "minimal.sh"),
    "cloud image": StartDisk(given=CLOUD_IMAGE),
}


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The packages of an image, divided for the peer.

    Attributes:
        given: In its base disk.
        installed: By apt, in its guest.
    """

    given: tuple[str, ...]
    installed: tuple[str, ...]


def shares(packages: Sequence[str], start: StartDisk) -> Shares:
    """Divide the packages of an image into those that the peer starts with and those that it installs; pure."""
    return Shares(
        given=tuple(name for name in packages if name in start.given),
        installed=tuple(name for name in packages if name not in start.given),
    )


def apt_options(configuration: str) -> str:
    """Return what this host's apt was told about the dates of its mirror, as apt's arguments; pure.

    Args:
        configuration: Output of `apt-config dump`.
    """
    found = re.findall(r'^(Acquire::Check-(?:Valid-Until|Date)) "([^"\s]*)";$', configuration, re.MULTILINE)
    return " ".join(f"-o {name}={value}" for name, value in found)


def make_base(base: BaseStage, packages: Sequence[str], start: StartDisk, work: Path, step: Step) -> None:
    """Make base.qcow2, vmlinuz and initrd.img in `work`: what the peer starts from, which elsewhere is a download."""
    base_stage.make_base(replace(base, packages=shares(packages, start).given), work, step, start.hook)
    raw = work / base_stage.DISK
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, work / "base.qcow2"])
    raw.unlink()


def write_payload(plan: Plan, pins: Mapping[str, Path], to: Path) -> None:
    """Write the archive that Packer copies into the guest: provision/, pins/ and release.json."""

    def roots(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        return info

    facts = to.with_name("release.json")
    facts.write_text(json.dumps({"image": plan.name, "summary": plan.image.summary, "build": "peer"}) + "\n")
    with tarfile.open(to, "w") as archive:
        archive.add(PROJECT / "provision", "provision", filter=roots)
        for script in plan.scripts:
            for folder, where in overlays(script).items():
                if folder.parts[0] != "provision":
                    archive.add(PROJECT / folder, f"provision/files/{script.removesuffix('.sh')}{where}", filter=roots)
        archive.add(facts, facts.name, filter=roots)
        for name, path in pins.items():
            archive.add(path, f"pins/{name}", filter=roots)


def packer_values(
    plan: Plan,
    start: StartDisk,
    *,
    base: Path,
    payload: Path,
    sources: Sequence[str],
    apt: str,
    folder: Path,
    key: KeyPair,
    accelerator: Accelerator,
) -> dict[str, object]:
    """Return the variables of templates/peer/image.pkr.hcl; pure."""
    return {
        "base": str(base / "base.qcow2"),
        "kernel": str(base / base_stage.KERNEL),
        "initrd": str(base / base_stage.INITRD),
        "payload": str(payload),
        "provision": str(TEMPLATES / "provision.sh"),
        "export": str(TEMPLATES / "export.sh"),
        "packages": " ".join(shares(plan.packages, start).installed),
        "customize": "" if start.customized else base_stage.HOOK.name,
        "initrd_drivers": " ".join(plan.base.initrd),
        "sources": ";".join(sources),
        "apt_options": apt,
        "steps": " ".join(plan.scripts),
        "versions": " ".join(f"{n.upper().replace('-', '_')}_VERSION={v}" for n, v in plan.versions.items()),
        "name": plan.name,
        "disk_size": f"{plan.disk_bytes >> 20}M",
        "accelerator": accelerator,
        "cpu": cpu_model(accelerator),
        "cpus": CPUS,
        "memory": MEMORY_MIB,
        "private_key": str(key.private),
        "public_key": base64.b64encode(key.public.encode()).decode(),
        "serial": str(folder / "serial.log"),
        "work": str(folder / "disk"),
        "output": str(folder / OUTPUT),
    }


def build(
    plan: Plan,
    start: StartDisk,
    *,
    base: Path,
    payload: Path,
    sources: Sequence[str],
    folder: Path,
    accelerator: Accelerator,
    tell: Callable[[str], None],
) -> Completed:
    """Let plain Packer make the image in `folder`/out; a failure is returned, not raised.

    Args:
        start: What it starts from.
        base: Folder of `make_base` for that.
        sources: Lines for sources.list that work in the guest.
        tell: Is told what is done beside.
    """
    (folder / OUTPUT).mkdir()
    shutil.copy(TEMPLATES / "image.pkr.hcl", folder)
    values = packer_values(
        plan,
        start,
        base=base,
        payload=payload,
        sources=sources,
        apt=apt_options(run(["apt-config", "dump"], check=False).output),
        folder=folder,
        key=make_key(folder),
        accelerator=accelerator,
    )
    (folder / "values.auto.pkrvars.json").write_text(json.dumps(values, indent=1))
    prepare_plugins(folder, tell)
    return packer("build", folder, "-color=false", timeout=TIMEOUT_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Booted:
    """What a plain boot gave: seconds until ssh answered, and the answers to commands."""

    seconds: float
    answers: tuple[str, ...]


def boot(
    disk: Opened,
    machine: Boot,
    *,
    plan: Plan,
    accelerator: Accelerator,
    folder: Path,
    commands: Sequence[str] = (),
) -> Booted:
    """Boot a disk on a throwaway overlay until it answers ssh, with nothing else beside it.

    Raises:
        BuildError: It does not answer; with the end of its console.
    """
    folder.mkdir()
    hardware = Hardware(
        profile=machine.profile,
        firmware=machine.firmware,
        accelerator=accelerator,
        cpus=machine_cpus(plan.image.machine.cpus, accelerator),
        memory=size_bytes(plan.image.machine.memory) >> 20,
        forwards={22: 0},
    )
    with cloned(disk.path, disk.format, hardware, folder, hostname="bench") as clone:
        try:
            seconds = clone.wait_for_ssh()
        except VerifyError as error:
            said = console_end(clone.machine.serial)
            raise BuildError(f"{disk.path.name}: {error.message}\n  its console ends with:{said}") from error
        with clone.log_in() as client:
            limit = SSH_SECONDS[accelerator]
            answers = tuple(client.exec_command(command, timeout=limit)[1].read().decode() for command in commands)
    shutil.rmtree(folder)
    return Booted(seconds=seconds, answers=answers)


def questions(plan: Plan) -> list[str]:
    """Return the commands whose answers must be the same in both images: packages, programs, configuration; pure."""
    paths = [f"/usr/local/bin/{file.name}" for file in plan.files]
    for step in plan.scripts:
        paths += laid_files(PROJECT, step)
    return ["dpkg-query -W -f '${Package} ${Version}\\n'", f"sudo sha256sum {shlex.join(paths)} 2>&1"]


def read_answers(booted: Booted) -> dict[str, str]:
    """Return package -> version and path -> SHA-256; pure.

    Raises:
        BuildError: There is no such answer.
    """
    packages = dict(line.split(maxsplit=1) for line in booted.answers[0].splitlines())
    files = dict(line.split(maxsplit=1)[::-1] for line in booted.answers[1].splitlines())
    if not packages or not files:
        raise BuildError("an image does not tell what is in it")
    return packages | files


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Name what two images do not agree on, one line each; pure."""
    return [
        f"  {name}: ours {ours.get(name, 'absent')}, the peer's {theirs.get(name, 'absent')}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
