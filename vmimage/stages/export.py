"""Export: sealed disk -> the files that people download."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from vmimage import PROJECT
from vmimage.formats.box import vagrantfile, write_libvirt_box, write_virtualbox_box
from vmimage.formats.ova import Appliance, write_ova
from vmimage.formats.qcow2 import write_qcow2
from vmimage.formats.raw_zst import write_raw_zst
from vmimage.formats.vmdk import write_vmdk
from vmimage.plan import Plan, digests
from vmimage.spec.model import FormatName, Formats, MachineSpec, port_range, size_bytes
from vmimage.stages.bake.stage import DISK, BakeStage
from vmimage.stages.stage import StoredStage
from vmimage.util.console import Step, human_bytes
from vmimage.util.errors import BuildError
from vmimage.util.files import sha256_file
from vmimage.util.run import run
from vmimage.vm.forwards import all_forwards

VENDOR = "vmimage"
APPLIANCE_TEMPLATE = Path("templates/appliance.ovf.j2")
VAGRANT_TEMPLATE = Path("templates/Vagrantfile.j2")


@dataclass(frozen=True, kw_only=True)
class ExportStage(StoredStage):
    """The files that people download.

    Attributes:
        summary: Of the image, for importers to show.
        machine: What the image asks for.
        files: Digests of the templates that descriptors are made from.
        tools: Versions of tools that what comes out depends on.
    """

    name = "export"
    edition = 3

    image: str
    arch: str
    summary: str
    formats: Formats
    machine: MachineSpec
    files: Mapping[str, str]
    tools: Mapping[str, str]

    @property
    def why(self) -> str:
        return ", ".join(self.formats.names)

    @property
    def exported(self) -> dict[FormatName, Mapping[str, object]]:
        """Name, bytes and SHA-256 of each file of the result that is there."""
        files = self.result.meta["files"]
        # JSON sorts its keys; the order of formats is that of their names in the spec.
        return {kind: files[kind] for kind in get_args(FormatName) if kind in files}

    def make(self, work: Path, step: Step) -> Mapping[str, object]:
        assert self.made_from  # noqa: S101 - the bake
        return make_export(self, self.made_from.result.path / DISK, work, step)


def export_stage(plan: Plan, bake: BakeStage) -> ExportStage:
    """Return the files of an image, made from its sealed disk."""
    return ExportStage(
        context=bake.context,
        after=bake,
        image=plan.name,
        arch=plan.base.arch,
        summary=plan.image.summary,
        formats=plan.image.formats,
        machine=plan.image.machine,
        files=digests(plan.project, [APPLIANCE_TEMPLATE, VAGRANT_TEMPLATE]),
        tools={tool: plan.tools[tool] for tool in ("qemu-img", "deflate", "zstandard")},
    )


def file_name(export: ExportStage, kind: FormatName) -> str:
    """Return the name of an exported file, before a version is known."""
    return f"{export.image}-{export.arch}.{kind}"


def writers(export: ExportStage) -> dict[FormatName, Callable[[Path, Path], object]]:
    """Return, for each format of the image, what writes a raw disk to a file."""
    formats = export.formats
    machine = appliance(export)
    ovf, vagrant = PROJECT / APPLIANCE_TEMPLATE, PROJECT / VAGRANT_TEMPLATE
    found: dict[FormatName, Callable[[Path, Path], object]] = {}
    if options := formats.qcow2:
        found["qcow2"] = partial(write_qcow2, compression=options.compression)
    if deflate := formats.ova:
        found["ova"] = partial(write_ova, appliance=machine, template=ovf, level=deflate.level)
    if deflate := formats.vmdk:
        found["vmdk"] = partial(_to_file, level=deflate.level)
    if zstd := formats.raw_zst:
        found["raw.zst"] = partial(write_raw_zst, level=zstd.level)
    if formats.vhdx:
        found["vhdx"] = _write_vhdx
    if options := formats.libvirt_box:
        text = vagrantfile(vagrant, machine, "libvirt")
        found["libvirt.box"] = partial(write_libvirt_box, vagrant=text, compression=options.compression)
    if deflate := formats.virtualbox_box:
        text = vagrantfile(vagrant, machine, "virtualbox")
        found["virtualbox.box"] = partial(
            write_virtualbox_box, appliance=machine, template=ovf, vagrant=text, level=deflate.level
        )
    return found


def appliance(export: ExportStage) -> Appliance:
    """Return what the OVA says of the machine; its version is the part of the release's that is known by now."""
    forwards = all_forwards(port_range(export.machine.ports))
    return Appliance(
        name=export.image,
        version=export.key[:8],
        vendor=VENDOR,
        summary=export.summary,
        cpus=export.machine.cpus,
        memory_mib=size_bytes(export.machine.memory) >> 20,
        forwards=tuple((name, forward.host, forward.guest) for name, forward in forwards.items()),
    )


def _to_file(disk: Path, to: Path, *, level: int) -> None:
    with to.open("wb") as file:
        write_vmdk(disk, file, level=level)


def _write_vhdx(disk: Path, to: Path) -> None:
    """Write a dynamic VHDX whose file has no holes: Windows refuses to attach a sparse one."""
    holey = to.with_suffix(".holey")
    run(["qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", disk, holey])
    run(["cp", "--sparse=never", holey, to])
    holey.unlink()


def make_export(export: ExportStage, disk: Path, work: Path, step: Step) -> Mapping[str, object]:
    """Write every format of the image into `work`, several at once; notes name, size and SHA-256 of each.

    Raises:
        BuildError: A file could not be written.
    """
    chosen = writers(export)

    def write(kind: FormatName) -> dict[str, object]:
        step.now(kind)
        path = work / file_name(export, kind)
        try:
            chosen[kind](disk, path)
        except OSError as error:
            raise BuildError(f"{path.name} could not be written: {error}") from error
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        files = dict(zip(chosen, pool.map(write, chosen), strict=True))
    step.outcome = ", ".join(f"{kind} {human_bytes((work / file_name(export, kind)).stat().st_size)}" for kind in files)
    return {"files": files}
