"""OVA: an OVF descriptor, a streamOptimized VMDK and a manifest of digests in one ustar archive.

The VMDK streams into the archive while it is hashed; the descriptor and the VMDK's tar header, which stand before it
and need its size, are filled in afterwards. The same disk and appliance always give the same bytes.

Source: DMTF DSP0243 (OVF), and what VirtualBox, VMware and virt-v2v accept: descriptor first, manifest lines without a
space before the bracket, ustar (GNU only for members of 8 GiB and more), no `./` before names.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO

from vmimage import PROJECT
from vmimage.formats.archive import BLOCK, Archive, Member, append, finish, member, opened_archive
from vmimage.formats.format import Appliance, Format, Opened, checked
from vmimage.formats.ovf import read_descriptor
from vmimage.formats.vmdk import MAGIC, SECTOR, DeflateOptions, write_vmdk
from vmimage.util.render import render

TEMPLATE = PROJECT / "templates" / "appliance.ovf.j2"
# Longest numbers that can stand in the descriptor: its place in the archive is reserved before they are known.
LARGEST = 10**15
NAMESPACE = uuid.UUID("5a3f2c7e-9d0b-5c1e-8f6a-1b7d4e2a9c30")
"""Of the identifiers in descriptors, which are made from the names of things and not by chance."""


def write_ova(
    disk: Path,
    to: Path,
    appliance: Appliance,
    template: Path,
    *,
    level: int,
    threads: int | None = None,
    stem: str = "",
    others: Mapping[str, bytes] | None = None,
) -> None:
    """Write a raw disk as an OVA.

    Args:
        template: The Jinja2 template of the descriptor.
        stem: Of the names of its members; the appliance's name when not given.
        others: More members, which the OVF and its manifest do not speak of.

    Raises:
        OSError: The disk cannot be read, or the archive not written; `to` is then incomplete.
    """
    base = stem or appliance.name
    identity = f"{appliance.name} {appliance.version}"
    capacity = disk.stat().st_size

    def descriptor(size: int, populated: int) -> bytes:
        values = {
            "appliance": appliance,
            "disk_name": f"{base}.vmdk",
            "disk_size": size,
            "capacity": capacity,
            "populated": populated,
            "disk_uuid": uuid.uuid5(NAMESPACE, f"disk {identity}"),
            "machine_uuid": uuid.uuid5(NAMESPACE, f"machine {identity}"),
        }
        return render(template, values).encode()

    reserved = len(descriptor(LARGEST, LARGEST))
    with to.open("wb") as archive:
        start = BLOCK + reserved + -reserved % BLOCK
        archive.write(bytes(start + BLOCK))
        sink = _Hashing(archive)
        disk_written = write_vmdk(disk, sink, threads=threads, level=level)
        archive.write(bytes(-disk_written.size % BLOCK))
        # White space after the last element is no part of the document.
        text = descriptor(disk_written.size, disk_written.populated).ljust(reserved, b"\n")
        manifest = (
            f"SHA256({base}.ovf)= {hashlib.sha256(text).hexdigest()}\nSHA256({base}.vmdk)= {sink.digest.hexdigest()}\n"
        ).encode()
        for name, data in {f"{base}.mf": manifest, **(others or {})}.items():
            append(archive, name, data)
        finish(archive)
        archive.seek(0)
        archive.write(member(f"{base}.ovf", reserved) + text)
        archive.seek(start)
        archive.write(member(f"{base}.vmdk", disk_written.size))


class _Hashing:
    """A sink that hashes what goes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)


def check_ova(path: Path, work: Path | None = None) -> Member:
    """Check what importers rely on, also what some of them do not check themselves; returns the disk.

    Args:
        work: A folder into which the disk is copied while it is hashed.

    Raises:
        ValueError: With the reason why the archive is refused.
    """
    with opened_archive(path) as archive:
        return check_appliance(archive, work)


def check_appliance(archive: Archive, work: Path | None, *, others: Collection[str] = (), stem: str = "") -> Member:
    """Check an appliance in an archive that is open, as `check_ova` does.

    Args:
        others: Members beside descriptor, disk and manifest, of which the manifest does not speak.
        stem: That the descriptor's name has; any when not given.
    """
    names = list(archive.members)
    if not names or not names[0].endswith(".ovf") or (stem and names[0] != f"{stem}.ovf"):
        raise ValueError(f"its first member is not the {stem}.ovf: {', '.join(names) or 'it is empty'}")
    descriptor = names[0]
    manifest = descriptor.removesuffix(".ovf") + ".mf"
    if manifest not in names:
        raise ValueError(f"the manifest {manifest} is missing")
    described = read_descriptor(archive.text(descriptor))
    if described.href not in names:
        raise ValueError(f"the disk {described.href} is missing")
    disk = archive.members[described.href]
    if disk.size != described.size:
        raise ValueError(f"{disk.name} has {disk.size} bytes, and the descriptor says {described.size}")
    if names.index(disk.name) != 1:
        raise ValueError(f"{disk.name} does not come right after the descriptor")
    digests = _listed(archive.text(manifest), manifest)
    if digests.keys() != set(names) - {manifest, *others}:
        raise ValueError(f"{manifest} lists {', '.join(digests)}, and the archive holds {', '.join(names)}")
    if digests.keys() != {descriptor, disk.name}:
        raise ValueError(f"it holds {', '.join(names)}, of which the descriptor names only {disk.name}")
    _check_disk(archive.head(disk.name), described.capacity, disk.name)
    _check_digest(descriptor, archive.copy(descriptor), digests, manifest)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context((work / disk.name).open("wb")) if work else None
        _check_digest(disk.name, archive.copy(disk.name, out), digests, manifest)
    return disk


def _listed(text: bytes, manifest: str) -> dict[str, str]:
    """Return what a manifest lists: file -> SHA-256."""
    listed = dict[str, str]()
    for line in text.decode("latin-1").removesuffix("\n").split("\n"):
        match = re.fullmatch(r"SHA256\(([A-Za-z0-9._-]+)\)= ([0-9a-f]{64})", line)
        if not match:
            raise ValueError(f"{manifest} has a line that is no SHA-256: {line!r}")
        if match[1] in listed:
            raise ValueError(f"{manifest} lists {match[1]} twice")
        listed[match[1]] = match[2]
    return listed


def _check_digest(name: str, actual: str, listed: Mapping[str, str], manifest: str) -> None:
    if actual != listed[name]:
        raise ValueError(f"{name} has the SHA-256 {actual}, and {manifest} says {listed[name]}")


def _check_disk(head: bytes, capacity: int, name: str) -> None:
    magic, _version, _flags, sectors = struct.unpack_from("<IIIQ", head.ljust(BLOCK, b"\0"))
    if magic != MAGIC:
        raise ValueError(f"{name} is no VMDK")
    if sectors * SECTOR != capacity:
        raise ValueError(f"{name} is a disk of {sectors * SECTOR} bytes, and the descriptor says {capacity}")


def _write(disk: Path, to: Path, options: DeflateOptions, appliance: Appliance) -> None:
    write_ova(disk, to, appliance, TEMPLATE, level=options.level)


def _open(path: Path, work: Path) -> Opened:
    return checked(Opened(path=work / check_ova(path, work).name, format="vmdk"))


OVA = Format(
    name="ova",
    summary="VirtualBox, VMware",
    options=DeflateOptions,
    machines=(
        ("virtualbox", "bios"),
        ("virtualbox", "uefi"),
        ("virtualbox-server", "bios"),
        ("virtualbox-ide", "bios"),
        ("vmware", "bios"),
        ("vmware", "uefi"),
        ("vmware-pvscsi", "bios"),
        ("vmware-lsi", "bios"),
    ),
    machines_told="VirtualBox: SATA + e1000 (BIOS, UEFI), e1000 server (BIOS), IDE + PCnet (BIOS); VMware: SATA + "
    "vmxnet3 (BIOS, UEFI), pvscsi + vmxnet3 (BIOS), LSI SAS + e1000e (BIOS)",
    taken_by="imported by VirtualBox 7.2 (machine, port forwards and disk compared) and read by virt-v2v; started by "
    "neither",
    write=_write,
    open=_open,
    compressor="deflate",
)
