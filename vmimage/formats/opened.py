"""Any exported file as the disk that its hypervisor sees."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmimage.formats.box import check_libvirt_box, check_virtualbox_box
from vmimage.formats.ova import Contents, check_ova
from vmimage.formats.raw_zst import read_raw_zst
from vmimage.spec.model import FormatName
from vmimage.util.errors import VerifyError
from vmimage.util.run import run

# Longest first: `.raw.zst` is no `.zst`.
SUFFIXES: tuple[FormatName, ...] = ("raw.zst", "qcow2", "vmdk", "vhdx", "ova", "libvirt.box", "virtualbox.box")

# What checks an archive, and the format of the disk in it.
PACKED: dict[FormatName, tuple[Callable[[Path], Contents], str]] = {
    "ova": (check_ova, "vmdk"),
    "libvirt.box": (check_libvirt_box, "qcow2"),
    "virtualbox.box": (check_virtualbox_box, "vmdk"),
}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A disk, and its format in QEMU's words."""

    path: Path
    format: str


def write_raw(disk: Opened, to: Path) -> None:
    """Write what is in a disk as a raw file, with holes for what is not allocated.

    Raises:
        VerifyError: It cannot be read.
    """
    run(["qemu-img", "convert", "-f", disk.format, "-O", "raw", disk.path, to], error=VerifyError)


def kind_of(path: Path) -> FormatName | None:
    """Return the format that a file's name says it has."""
    return next((kind for kind in SUFFIXES if path.name.endswith(f".{kind}")), None)


def open_disk(kind: FormatName, path: Path, work: Path) -> Opened:
    """Check an exported file, and unpack its disk into `work` where a hypervisor's importer would do so, too.

    Raises:
        ValueError: It is refused, with the reason.
        OSError: It cannot be read, or what comes out not be written.
    """
    if kind in PACKED:
        check, disk_format = PACKED[kind]
        contents = check(path)
        disk = work / contents.disk_name
        with path.open("rb") as archive, disk.open("wb") as out:
            archive.seek(contents.offset)
            shutil.copyfileobj(archive, out, 1 << 20)
            out.truncate(contents.size)
        opened = Opened(path=disk, format=disk_format)
    elif kind == "raw.zst":
        disk = work / "disk.raw"
        read_raw_zst(path, disk)
        return Opened(path=disk, format="raw")
    else:
        opened = Opened(path=path, format=kind)
    checked = run(["qemu-img", "check", "-f", opened.format, opened.path], check=False)
    if checked.returncode:
        raise ValueError(f"its disk is damaged: {checked.output.strip()}")
    return opened
