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
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree as ET

from vmimage.formats.vmdk import MAGIC, SECTOR, write_vmdk
from vmimage.render import render

BLOCK = tarfile.BLOCKSIZE
RECORD = tarfile.RECORDSIZE
USTAR_LIMIT = 8 << 30
LARGEST_TEXT = 1 << 20
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
# Longest numbers that can stand in the descriptor: its place in the archive is reserved before they are known.
LARGEST = 10**15
NAMESPACE = uuid.UUID("5a3f2c7e-9d0b-5c1e-8f6a-1b7d4e2a9c30")
"""Of the identifiers in descriptors, which are made from the names of things and not by chance."""


@dataclass(frozen=True, kw_only=True)
class Appliance:
    """What the descriptor says of the machine.

    Attributes:
        forwards: (name, port on the host's loopback, port of the guest), set up by VirtualBox at import.
    """

    name: str
    version: str
    vendor: str
    summary: str
    cpus: int
    memory_mib: int
    forwards: tuple[tuple[str, int, int], ...]


def write_ova(
    disk: Path, to: Path, appliance: Appliance, template: Path, *, level: int, threads: int | None = None
) -> None:
    """Write a raw disk as an OVA.

    Args:
        template: The Jinja2 template of the descriptor.

    Raises:
        OSError: The disk cannot be read, or the archive not written; `to` is then incomplete.
    """
    base = appliance.name
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
        archive.write(member(f"{base}.mf", len(manifest)) + manifest + bytes(-len(manifest) % BLOCK))
        archive.write(bytes(2 * BLOCK))
        archive.write(bytes(-archive.tell() % RECORD))
        archive.seek(0)
        archive.write(member(f"{base}.ovf", reserved) + text)
        archive.seek(start)
        archive.write(member(f"{base}.vmdk", disk_written.size))


def member(name: str, size: int) -> bytes:
    """Return the tar header of a file; nothing in it depends on the host or the time."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT if size >= USTAR_LIMIT else tarfile.USTAR_FORMAT)


class _Hashing:
    """A sink that hashes what goes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Where the disk lies in an archive that is good."""

    disk_name: str
    offset: int
    size: int


def check_ova(path: Path) -> Contents:
    """Check what importers rely on, also what some of them do not check themselves.

    Raises:
        ValueError: With the reason why the archive is refused.
    """
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError("it is compressed by gzip; an OVA is a plain tar archive")
    try:
        with tarfile.open(path, "r:") as archive:
            return _check_members(path, archive)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"it is no readable tar archive: {error}") from error


def _check_members(path: Path, archive: tarfile.TarFile) -> Contents:
    members = archive.getmembers()
    for info in members:
        if info.pax_headers:
            raise ValueError("it is a pax archive; importers read ustar")
        if "/" in info.name or not info.isreg():
            raise ValueError(f"its member {info.name} is not a plain file at the top")
        if info.offset_data + info.size > path.stat().st_size:
            raise ValueError(f"it is cut short within {info.name}")
    names = [info.name for info in members]
    if not names or not names[0].endswith(".ovf"):
        raise ValueError(f"its first member is not the .ovf: {', '.join(names) or 'it is empty'}")
    by_name = {info.name: info for info in members}
    manifest = names[0].removesuffix(".ovf") + ".mf"
    if manifest not in by_name:
        raise ValueError(f"the manifest {manifest} is missing")
    file, capacity = _described(_read_member(archive, by_name[names[0]]))
    if file.href not in by_name:
        raise ValueError(f"the disk {file.href} is missing")
    disk = by_name[file.href]
    if disk.size != file.size:
        raise ValueError(f"{file.href} has {disk.size} bytes, and the descriptor says {file.size}")
    if names.index(file.href) != 1:
        raise ValueError(f"{file.href} does not come right after the descriptor")
    _check_digests(archive, by_name, _read_member(archive, by_name[manifest]).decode("ascii", "replace"), manifest)
    _check_disk(_head(archive, disk), capacity, file.href)
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
    if listed.keys() != members.keys() - {manifest}:
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


def _read_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if info.size > LARGEST_TEXT:
        raise ValueError(f"{info.name} has {info.size} bytes, too many for a text")
    return _head(archive, info, info.size)


def _head(archive: tarfile.TarFile, info: tarfile.TarInfo, count: int = BLOCK) -> bytes:
    stream = archive.extractfile(info)
    assert stream is not None  # noqa: S101 - a regular file, checked before
    with stream:
        return stream.read(count)
