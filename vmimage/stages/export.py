"""Export: sealed disk -> the files that people download."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vmimage.formats.all import BY_NAME
from vmimage.formats.format import Appliance
from vmimage.plan import Plan, digests
from vmimage.spec.model import Formats, MachineSpec, port_range, size_bytes
from vmimage.stages.bake.stage import DISK, BakeStage
from vmimage.stages.stage import StoredStage
from vmimage.util.console import Step, human_bytes
from vmimage.util.errors import BuildError
from vmimage.util.files import sha256_file
from vmimage.vm.forwards import all_forwards

VENDOR = "vmimage"
TEMPLATES = [Path("templates", name) for name in ("appliance.ovf.j2", "Vagrantfile.j2")]
"""What descriptors of formats are made from."""


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
    def exported(self) -> dict[str, Mapping[str, object]]:
        """Name, bytes and SHA-256 of each file of the result that is there."""
        files = self.result.meta["files"]
        # JSON sorts its keys; the order of formats is that of their names in the spec.
        return {kind: files[kind] for kind in BY_NAME if kind in files}

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
        files=digests(plan.project, TEMPLATES),
        tools={tool: plan.tools[tool] for tool in ("qemu-img", "deflate", "zstandard")},
    )


def file_name(export: ExportStage, kind: str) -> str:
    """Return the name of an exported file, before a version is known."""
    return f"{export.image}-{export.arch}.{kind}"


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


def make_export(export: ExportStage, disk: Path, work: Path, step: Step) -> Mapping[str, object]:
    """Write every format of the image into `work`, several at once; notes name, size and SHA-256 of each.

    Raises:
        BuildError: A file could not be written.
    """
    chosen = export.formats.chosen
    machine = appliance(export)

    def write(kind: str) -> dict[str, object]:
        step.now(kind)
        path = work / file_name(export, kind)
        try:
            BY_NAME[kind].write(disk, path, chosen[kind], machine)
        except OSError as error:
            raise BuildError(f"{path.name} could not be written: {error}") from error
        return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        files = dict(zip(chosen, pool.map(write, chosen), strict=True))
    step.outcome = ", ".join(f"{kind} {human_bytes((work / file_name(export, kind)).stat().st_size)}" for kind in files)
    return {"files": files}
