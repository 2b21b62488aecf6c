"""VHDX, by qemu-img."""

from __future__ import annotations

from pathlib import Path

from vmimage.formats.format import Appliance, Format, NoOptions, Opened, checked
from vmimage.util.run import run


def _write(disk: Path, to: Path, _options: NoOptions, _: Appliance) -> None:
    """Write a dynamic VHDX whose file has no holes: Windows refuses to attach a sparse one."""
    holey = to.with_suffix(".holey")
    run(["qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", disk, holey])
    run(["cp", "--sparse=never", holey, to])
    holey.unlink()


VHDX = Format(
    name="vhdx",
    summary="Hyper-V, generation 1",
    options=NoOptions,
    machines=(("hyperv", "bios"),),
    machines_told="IDE + Tulip (BIOS)",
    taken_by="opened by QEMU; not tried in Hyper-V, whose own devices QEMU has not",
    write=_write,
    open=lambda path, _: checked(Opened(path=path, format="vhdx")),
    compressor="none",
    usage="Hyper-V, a machine of generation 1: "
    "`New-VM -Name {image} -Generation 1 -MemoryStartupBytes {memory} -VHDPath {file}`.",
)
