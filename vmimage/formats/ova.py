"""OVA: an OVF descriptor, a streamOptimized VMDK and a manifest of digests in one ustar archive.

The VMDK streams into the archive while it is hashed; the descriptor and the VMDK's tar header, which stand before it
and need its size, are filled in afterwards. The same disk and appliance always give the same bytes.

Source: DMTF DSP0243 (OVF), and what VirtualBox, VMware and virt-v2v accept: descriptor first, manifest lines without a
space before the bracket, ustar (GNU only for members of 8 GiB and more), no `./` before names.
"""

from __future__ import annotations

import hashlib
import re
import struct
import tarfile
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree as ET

from vmimage import PROJECT
from vmimage.formats.archive import BLOCK, append, finish, member, opened_archive, read_head, read_text
from vmimage.formats.format import Appliance, Format, Opened
from vmimage.formats.unpacked import Contents, unpacked
from vmimage.formats.vmdk import MAGIC, SECTOR, DeflateOptions, write_vmdk
from vmimage.util.render import render

TEMPLATE = PROJECT / "templates" / "appliance.ovf.j2"
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
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


def check_ova(path: Path, others: Collection[str] = ()) -> Contents:
    """Check what importers rely on, also what some of them do not check themselves.

    Args:
        others: Members that the manifest does not list.

    Raises:
        ValueError: With the reason why the archive is refused.
    """
    with opened_archive(path) as (archive, members):
        return _check_members(archive, members, others)


def _check_members(
    archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], others: Collection[str]
) -> Contents:
    names = list(members)
    if not names or not names[0].endswith(".ovf"):
        raise ValueError(f"its first member is not the .ovf: {', '.join(names) or 'it is empty'}")
    manifest = names[0].removesuffix(".ovf") + ".mf"
    if manifest not in members:
        raise ValueError(f"the manifest {manifest} is missing")
    file, capacity = _described(read_text(archive, members[names[0]]))
    if file.href not in members:
        raise ValueError(f"the disk {file.href} is missing")
    disk = members[file.href]
    if disk.size != file.size:
        raise ValueError(f"{file.href} has {disk.size} bytes, and the descriptor says {file.size}")
    if names.index(file.href) != 1:
        raise ValueError(f"{file.href} does not come right after the descriptor")
    listed = {name: info for name, info in members.items() if name not in (*others, manifest)}
    _check_digests(archive, listed, read_text(archive, members[manifest]).decode("ascii", "replace"), manifest)
    _check_disk(read_head(archive, disk), capacity, file.href)
    return Contents(disk_name=file.href, offset=disk.offset_data, size=disk.size)


@dataclass(frozen=True)
class _File:
    href: str
    size: int


def _described(text: bytes) -> tuple[_File, int]:
    """Return the only file and the capacity of the only disk of a descriptor."""
    try:
        envelope = ET.fromstring(text)  # noqa: S314 - no entities: expat here refuses to expand them without limit
    except ET.ParseError as error:
        raise ValueError(f"its descriptor is not XML: {error}") from error
    files, disks = list(envelope.iter(f"{OVF}File")), list(envelope.iter(f"{OVF}Disk"))
    if len(files) != 1 or len(disks) != 1:
        raise ValueError(f"its descriptor has {len(files)} files and {len(disks)} disks instead of one each")
    try:
        file = _File(files[0].attrib[f"{OVF}href"], int(files[0].attrib[f"{OVF}size"]))
        return file, int(disks[0].attrib[f"{OVF}capacity"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"its descriptor lacks the name, size or capacity of the disk: {error}") from error


def _check_digests(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], text: str, manifest: str) -> None:
    listed = {}
    for line in text.splitlines():
        match = re.fullmatch(r"SHA256\((.+)\)= ([0-9a-f]{64})", line)
        if not match:
            raise ValueError(f"{manifest} has a line that is no SHA-256: {line!r}")
        listed[match[1]] = match[2]
    if listed.keys() != members.keys():
        raise ValueError(f"{manifest} lists {', '.join(listed)}, and the archive holds {', '.join(members)}")
    for name, wanted in listed.items():
        stream = archive.extractfile(members[name])
        assert isinstance(stream, BufferedReader)  # noqa: S101 - a regular file, checked before
        with stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != wanted:
            raise ValueError(f"{name} has the SHA-256 {actual}, and {manifest} says {wanted}")


def _check_disk(head: bytes, capacity: int, name: str) -> None:
    magic, _version, _flags, sectors = struct.unpack_from("<IIIQ", head.ljust(BLOCK, b"\0"))
    if magic != MAGIC:
        raise ValueError(f"{name} is no VMDK")
    if sectors * SECTOR != capacity:
        raise ValueError(f"{name} is a disk of {sectors * SECTOR} bytes, and the descriptor says {capacity}")


def _write(disk: Path, to: Path, options: DeflateOptions, appliance: Appliance) -> None:
    write_ova(disk, to, appliance, TEMPLATE, level=options.level)


def _open(path: Path, work: Path) -> Opened:
    return unpacked(path, check_ova(path), "vmdk", work)


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
