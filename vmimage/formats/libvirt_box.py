"""A Vagrant box for libvirt: metadata, a Vagrantfile and a qcow2 in one tar archive."""

from __future__ import annotations

import shutil
from pathlib import Path

from vmimage.formats.archive import BLOCK, Member, append, finish, member, opened_archive
from vmimage.formats.box import METADATA, VAGRANTFILE, check_metadata, metadata, vagrantfile
from vmimage.formats.format import Appliance, Format, Opened, checked
from vmimage.formats.qcow2 import Qcow2Options, virtual_size, write_qcow2

IMAGE = "box.img"


def write_libvirt_box(disk: Path, to: Path, vagrant: bytes, compression: str) -> None:
    """Write a raw disk as a box of the libvirt provider.

    Args:
        vagrant: Its Vagrantfile.
        compression: Of the qcow2 inside: zstd or zlib.

    Raises:
        OSError, BuildError: It could not be written; `to` is then incomplete.
    """
    image = to.with_name(f"{to.name}.img")
    write_qcow2(disk, image, compression=compression)
    with to.open("wb") as archive, image.open("rb") as source:
        append(archive, METADATA, metadata("libvirt", format="qcow2", virtual_size=gibibytes(disk.stat().st_size)))
        append(archive, VAGRANTFILE, vagrant)
        size = image.stat().st_size
        archive.write(member(IMAGE, size))
        shutil.copyfileobj(source, archive, 1 << 20)
        archive.write(bytes(-size % BLOCK))
        finish(archive)
    image.unlink()


def check_libvirt_box(path: Path, work: Path | None = None) -> Member:
    """Check what Vagrant and its libvirt plugin rely on; returns the disk.

    Args:
        work: A folder into which the disk is copied.

    Raises:
        ValueError: With the reason why the box is refused.
    """
    with opened_archive(path) as archive:
        facts = check_metadata(archive, "libvirt")
        if set(archive.members) != {METADATA, VAGRANTFILE, IMAGE}:
            held = ", ".join(archive.members)
            raise ValueError(f"it holds {held} instead of {METADATA}, {VAGRANTFILE} and {IMAGE}")
        size = virtual_size(archive.head(IMAGE))
        if facts.get("format") != "qcow2" or facts.get("virtual_size") != gibibytes(size):
            raise ValueError(f"{METADATA} does not describe {IMAGE}, a qcow2 of {gibibytes(size)} GiB")
        if work:
            with (work / IMAGE).open("wb") as out:
                archive.copy(IMAGE, out)
        return archive.members[IMAGE]


def gibibytes(size: int) -> int:
    """Round up to the unit of `virtual_size`."""
    return -(-size >> 30)


def _write(disk: Path, to: Path, options: Qcow2Options, appliance: Appliance) -> None:
    write_libvirt_box(disk, to, vagrantfile(appliance, "libvirt"), options.compression)


def _open(path: Path, work: Path) -> Opened:
    return checked(Opened(path=work / check_libvirt_box(path, work).name, format="qcow2"))


LIBVIRT_BOX = Format(
    name="libvirt.box",
    summary="Vagrant with libvirt",
    options=Qcow2Options,
    machines=(("libvirt", "bios"),),
    machines_told="virtio on the older board (BIOS)",
    taken_by="`vagrant up` with libvirt (`invoke test --vagrant`): started, logged in, destroyed",
    write=_write,
    open=_open,
    compressor="zstd",
)
