"""Disks that name nothing outside of themselves: looked at before a program opens them that would follow a name.

A qcow2 can name a backing file and a file with its data, a VMDK its extents and its parent: other files of this host,
folders, devices, servers. QEMU opens them all. What we make names none, so any name is refused.
Sources: docs/interop/qcow2.rst and block/vmdk.c of QEMU; VMware, "Virtual Disk Format 5.0".
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import IO

SECTOR = 512

QCOW2_MAGIC = b"QFI\xfb"
QCOW2_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
"""Magic, version, backing file's offset and size, cluster bits, size, encryption, tables, snapshots."""
QCOW2_HEADER_3 = struct.Struct(">QQQII")
"""Incompatible, compatible and autoclear features, refcount order, length of the header."""
DIRTY, CORRUPT, OTHER_COMPRESSION = 1, 2, 8
EXTENSION = struct.Struct(">II")
LARGEST_CLUSTER_BITS = 21
NAMING_EXTENSIONS = {0xE2792ACA: "a backing file", 0x44415441: "a file with its data", 0x0537BE77: "encryption"}

VMDK_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
"""Magic, version, flags, capacity, grain, descriptor's place and length in sectors, table entries, directories, …"""
VMDK_MAGIC = b"KDMV"
DIRECTORY_AT_END = 0xFFFF_FFFF_FFFF_FFFF
MOST_DESCRIPTOR_BYTES = 64 << 10
EXTENT = re.compile(r"(RW|RDONLY|NOACCESS)\s")
OWN_EXTENT = re.compile(r'RDONLY \d+ SPARSE "[^"]*"')


def require_self_contained(path: Path, disk_format: str) -> None:
    """Check that a disk names nothing else.

    Args:
        disk_format: In QEMU's words.

    Raises:
        ValueError: It does, or it is not of that format.
        OSError: It cannot be read.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        if disk_format == "qcow2":
            _check_qcow2(file)
        elif disk_format == "vmdk":
            _check_vmdk(file)


def _check_qcow2(file: IO[bytes]) -> None:
    _, version, backing, _, cluster_bits, _, encryption, *_ = _fields(QCOW2_HEADER, file, 0, QCOW2_MAGIC, "qcow2")
    if version not in (2, 3) or cluster_bits > LARGEST_CLUSTER_BITS:
        raise ValueError(f"it is a qcow2 of version {version} with clusters of 2^{cluster_bits} bytes")
    if backing:
        raise ValueError("it names a backing file")
    if encryption:
        raise ValueError("it is encrypted")
    length = QCOW2_HEADER.size
    if version == 3:  # noqa: PLR2004 - of the format
        features, _, _, _, length = QCOW2_HEADER_3.unpack(_read(file, QCOW2_HEADER.size, QCOW2_HEADER_3.size))
        if features & ~(DIRTY | CORRUPT | OTHER_COMPRESSION):
            raise ValueError(f"it has features that ours have not ({features:#x}), such as a file with its data")
    _check_extensions(file, length, 1 << cluster_bits)


def _check_extensions(file: IO[bytes], at: int, end: int) -> None:
    while at + EXTENSION.size <= end:
        kind, size = EXTENSION.unpack(_read(file, at, EXTENSION.size))
        if not kind:
            return
        if kind in NAMING_EXTENSIONS:
            raise ValueError(f"it names {NAMING_EXTENSIONS[kind]}")
        at += EXTENSION.size + -(-size // 8) * 8


def _check_vmdk(file: IO[bytes]) -> None:
    head = _vmdk_header(file, 0)
    directory = 9
    if head[directory] == DIRECTORY_AT_END:
        # The header again, with the place of the directory; it is the one that QEMU goes by.
        end = file.seek(0, os.SEEK_END)
        footer = _vmdk_header(file, end - 2 * SECTOR)
        if footer[:directory] + footer[directory + 1 :] != head[:directory] + head[directory + 1 :]:
            raise ValueError("its footer contradicts its header")
    capacity, place, length = head[3], head[5], head[6]
    if not capacity:
        raise ValueError("its header tells no capacity, so its descriptor would name the files that hold the disk")
    if not place or not 0 < length * SECTOR <= MOST_DESCRIPTOR_BYTES:
        raise ValueError("it has no descriptor of a usual length")
    text = _read(file, place * SECTOR, length * SECTOR).split(b"\0")[0].decode("latin-1")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    extents = [line for line in lines if EXTENT.match(line)]
    settings = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    if settings.get("createType") != '"streamOptimized"' or len(extents) != 1 or not OWN_EXTENT.fullmatch(extents[0]):
        raise ValueError("its descriptor is not that of one stream-optimized disk")
    if settings.get("parentCID") != "ffffffff" or "parentFileNameHint" in text:
        raise ValueError("it names a parent")


def _vmdk_header(file: IO[bytes], at: int) -> tuple[int, ...]:
    return _fields(VMDK_HEADER, file, at, VMDK_MAGIC, "stream-optimized VMDK")


def _fields(form: struct.Struct, file: IO[bytes], at: int, magic: bytes, what: str) -> tuple[int, ...]:
    data = _read(file, at, form.size) if at >= 0 else b""
    if not data.startswith(magic):
        raise ValueError(f"it is no {what}")
    return form.unpack(data)


def _read(file: IO[bytes], at: int, size: int) -> bytes:
    file.seek(at)
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it is cut short")
    return data
