"""`invoke bench export`: our writers against qemu-img, one after the other on the same sealed disk.

Machines are noisy: read the ratios of one run, not the seconds of two.
"""

from __future__ import annotations

import importlib
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vmimage.cache.store import Store
from vmimage.disk.raw import allocated
from vmimage.formats import vmdk
from vmimage.formats.ova import TEMPLATE, write_ova
from vmimage.formats.vmdk import VMDK_LEVEL
from vmimage.stages.bake.stage import DISK, BakeStage
from vmimage.stages.export import ExportStage, appliance
from vmimage.util.console import Console, human_bytes
from vmimage.util.errors import InputError
from vmimage.util.run import run

Write = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Contender:
    """A way to write a file from the sealed disk."""

    format: str
    name: str
    write: Write


def contenders(export: ExportStage) -> list[Contender]:
    """Return what is compared; the first of each format is what a toolchain without writers of its own does."""

    def ova(threads: int | None = None) -> Write:
        return lambda disk, to: write_ova(disk, to, appliance(export), TEMPLATE, level=VMDK_LEVEL, threads=threads)

    def by_qemu(*options: str) -> Write:
        return lambda disk, to: run(["qemu-img", "convert", *options, "-f", "raw", disk, to])

    isal = _isal()
    stream = ("-O", "vmdk", "-o", "subformat=streamOptimized")
    zstd = ("-c", "-O", "qcow2", "-o", "compression_type=zstd")
    return [
        Contender("ova", "qemu-img, sha256sum, tar", _ova_by_qemu),
        Contender("ova", "qemu-img -W -m 16, sha256sum, tar", partial(_ova_by_qemu, options=("-W", "-m", "16"))),
        Contender("ova", "ours", ova()),
        Contender("ova", "ours, one core", ova(1)),
        Contender("vmdk", "qemu-img", by_qemu(*stream)),
        *(Contender("vmdk", f"ours, libdeflate level {level}", _vmdk(level)) for level in (1, 2, 3, 4, 5, 6, 7, 9)),
        *(Contender("vmdk", f"ours, ISA-L level {level}", _vmdk(level, isal)) for level in (1, 2, 3) if isal),
        Contender("vmdk", "ours, Python's zlib level 6", _vmdk(6, zlib.compress)),
        Contender("qcow2", "qemu-img -c (zlib)", by_qemu("-c", "-O", "qcow2")),
        Contender("qcow2", "qemu-img -c zstd (ours)", by_qemu(*zstd)),
        Contender("qcow2", "the same with -W -m 16: not reproducible", by_qemu(*zstd, "-W", "-m", "16")),
        Contender("qcow2", "clusters of 2 MiB", by_qemu(*zstd[:-1], "compression_type=zstd,cluster_size=2M")),
    ]


def _vmdk(level: int, compress: vmdk.Compress | None = None) -> Write:
    def write(disk: Path, to: Path) -> None:
        with to.open("wb") as file:
            if compress:
                vmdk.write_vmdk(disk, file, level=level, compress=compress)
            else:
                vmdk.write_vmdk(disk, file, level=level)

    return write


def _isal() -> vmdk.Compress | None:
    """Return Intel's deflate where its Python package `isal` is installed: only this comparison needs it."""
    try:
        compress: vmdk.Compress = importlib.import_module("isal.isal_zlib").compress
    except ImportError:
        return None
    return compress


def bench_export(export: ExportStage, store: Store, console: Console) -> None:
    """Print seconds, the ratio to the first of the format, and bytes.

    Raises:
        InputError: The image was not baked yet.
    """
    bake = export.after
    assert isinstance(bake, BakeStage)  # noqa: S101 - an export is made from a bake
    found = bake.find()
    if not found:
        raise InputError(f"{export.image} is not in the cache", hint=f"run `invoke build-image {export.image}` first")
    disk = found.path / DISK
    used = human_bytes(allocated(disk))
    console.say(f"{export.image}: a disk of {human_bytes(bake.disk)}, {used} of it allocated")
    reference: dict[str, float] = {}
    with store.workspace("bench") as work:
        for contender in contenders(export):
            folder = work / "out"
            folder.mkdir()
            to = folder / f"out.{contender.format}"
            started = time.monotonic()
            contender.write(disk, to)
            seconds = time.monotonic() - started
            ratio = seconds / reference.setdefault(contender.format, seconds)
            size = to.stat().st_size
            console.event(
                "bench", format=contender.format, name=contender.name, seconds=seconds, ratio=ratio, bytes=size
            )
            console.say(f"{contender.format:<6} {seconds:7.1f} s  {ratio:6.3f}  {size:>12}  {contender.name}")
            shutil.rmtree(folder)


def _ova_by_qemu(disk: Path, to: Path, options: Sequence[str] = ()) -> None:
    """Make an OVA as toolchains commonly do; the descriptor is a stand-in of the same size."""
    folder = to.parent
    vmdk_file, ovf, manifest = folder / "disk.vmdk", folder / "box.ovf", folder / "box.mf"
    run(
        ["qemu-img", "convert", *options, "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, vmdk_file]
    )
    ovf.write_bytes(bytes(8000))
    manifest.write_text(run(["sha256sum", "--tag", ovf, vmdk_file]).output)
    run(["tar", "--format=ustar", "-cf", to, "-C", folder, ovf.name, vmdk_file.name, manifest.name])
