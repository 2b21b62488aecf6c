"""streamOptimized VMDK: the compressed, sequential disk format that OVF archives carry.

Written in one pass by all cores: only allocated extents are read, grains of zeros are left out, and the same disk
always gives the same bytes. Source of the format: VMware, "Virtual Disk Format 5.0", and QEMU's block/vmdk.c.

Layout, in sectors of 512 bytes: header, descriptor, then for each 32 MiB of disk its compressed grains followed by
their grain table, then the grain directory, a footer (the header again, now with the directory's place), and exactly
one end-of-stream sector (qemu-img writes 127 more, which some of VMware's tools report as a wrong digest).
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import deflate
from pydantic import Field

from vmimage.disk.raw import extents, read_range
from vmimage.formats.format import Appliance, Format, Opened, checked
from vmimage.util.model import Model

VMDK_LEVEL = 5
"""Of libdeflate: what `invoke bench export` found to be a good bargain of time and size."""

SECTOR = 512
GRAIN = 64 << 10
GRAIN_SECTORS = GRAIN // SECTOR
GRAINS_PER_TABLE = 512
TABLE_SPAN = GRAIN * GRAINS_PER_TABLE
DESCRIPTOR_SECTORS = 20
# Data starts at a multiple of the grain, as in the files of VMware and QEMU.
OVERHEAD_SECTORS = GRAIN_SECTORS

MAGIC = 0x564D444B
VERSION = 3
FLAGS = 0x30001  # newline test valid, compressed grains, markers
DEFLATE = 1
DIRECTORY_AT_END = 0xFFFF_FFFF_FFFF_FFFF
MARKER_TABLE, MARKER_DIRECTORY, MARKER_FOOTER = 1, 2, 3

ZERO_GRAIN = bytes(GRAIN)

Compress = Callable[[bytes, int], bytes | bytearray]


class Sink(Protocol):
    """What the writer needs of a file: bytes go in, in order."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of it: the bytes of the VMDK, and the bytes of disk that are in it (OVF's `populatedSize`)."""

    size: int
    populated: int


def write_vmdk(
    disk: Path, sink: Sink, *, level: int, threads: int | None = None, compress: Compress = deflate.zlib_compress
) -> Written:
    """Write a raw disk as a streamOptimized VMDK.

    Args:
        disk: Raw image; its size is a multiple of 512 bytes.
        sink: Takes the bytes in order; no seek is needed.
        level: What `compress` takes; libdeflate's go from 1 to 12.
        compress: Makes a zlib stream of a grain.
        threads: That compress at once; all processors when not given.

    Raises:
        OSError: The disk cannot be read, or ended before its size.
        ValueError: Its size is no multiple of a sector.
    """
    capacity = disk.stat().st_size
    if not capacity or capacity % SECTOR:
        raise ValueError(f"{disk} has {capacity} bytes, which is no multiple of {SECTOR}")
    out = _Counting(sink)

    def compressed(grain: bytes) -> bytes:
        return bytes(compress(grain, level))

    out.write(header(capacity, DIRECTORY_AT_END))
    out.write(descriptor(capacity))
    out.write(bytes(OVERHEAD_SECTORS * SECTOR - out.count))
    directory = [0] * -(-capacity // TABLE_SPAN)
    populated = 0
    with disk.open("rb") as file:
        for number, grains in _compressed_tables(file.fileno(), capacity, threads or os.cpu_count() or 1, compressed):
            table = [0] * GRAINS_PER_TABLE
            for grain, data in grains:
                table[grain] = out.sector
                out.write(data)
            out.write(marker(MARKER_TABLE, GRAINS_PER_TABLE * 4 // SECTOR))
            directory[number] = out.sector
            out.write(struct.pack(f"<{GRAINS_PER_TABLE}I", *table))
            populated += len(grains) * GRAIN
    packed = padded(struct.pack(f"<{len(directory)}I", *directory))
    out.write(marker(MARKER_DIRECTORY, len(packed) // SECTOR))
    place = out.sector
    out.write(packed)
    out.write(marker(MARKER_FOOTER, 1))
    out.write(header(capacity, place))
    out.write(bytes(SECTOR))
    return Written(size=out.count, populated=min(populated, capacity))


class _Counting:
    """A sink that knows where it is."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.count = 0

    @property
    def sector(self) -> int:
        return self.count // SECTOR

    def write(self, data: bytes) -> None:
        self._sink.write(data)
        self.count += len(data)


def padded(data: bytes) -> bytes:
    """Fill up to a whole sector."""
    return data + bytes(-len(data) % SECTOR)


def marker(kind: int, sectors: int) -> bytes:
    """Return the sector that announces a grain table, the directory or the footer."""
    return padded(struct.pack("<QII", sectors, 0, kind))


def header(capacity: int, directory: int) -> bytes:
    """Return the header, which is also the footer once the place of the directory is known."""
    fields = struct.pack(
        "<IIIQQQQIQQQB4sH",
        MAGIC,
        VERSION,
        FLAGS,
        capacity // SECTOR,
        GRAIN_SECTORS,
        1,
        DESCRIPTOR_SECTORS,
        GRAINS_PER_TABLE,
        0,
        directory,
        OVERHEAD_SECTORS,
        0,
        b"\n \r\n",
        DEFLATE,
    )
    return padded(fields)


def descriptor(capacity: int) -> bytes:
    """Return the text that describes the disk; its content id is constant, so that equal disks are equal files."""
    sectors = capacity // SECTOR
    cylinders = min(sectors // (16 * 63), 16383)
    text = (
        "# Disk DescriptorFile\nversion=1\nCID=7d1d5e7a\nparentCID=ffffffff\n"
        'createType="streamOptimized"\n\n# Extent description\n'
        f'RDONLY {sectors} SPARSE "disk.vmdk"\n\n# The Disk Data Base\n#DDB\n\n'
        f'ddb.virtualHWVersion = "4"\nddb.geometry.cylinders = "{cylinders}"\nddb.geometry.heads = "16"\n'
        'ddb.geometry.sectors = "63"\nddb.adapterType = "lsilogic"\n'
    )
    return text.encode().ljust(DESCRIPTOR_SECTORS * SECTOR, b"\0")


def _compressed_tables(
    fd: int, capacity: int, threads: int, compress: Callable[[bytes], bytes]
) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """Yield (number of a grain table, its grains that are not all zeros), in order; some tables are worked on ahead."""
    waiting: deque[tuple[int, Future[list[tuple[int, bytes]]]]] = deque()
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for number, ranges in _tables(fd, capacity):
            waiting.append((number, pool.submit(_compress_table, fd, number, ranges, capacity, compress)))
            # Bounds the memory: a table is up to 32 MiB.
            if len(waiting) > 2 * threads:
                first, done = waiting.popleft()
                yield from _if_any(first, done.result())
        for first, done in waiting:
            yield from _if_any(first, done.result())


def _if_any(number: int, grains: list[tuple[int, bytes]]) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    if grains:
        yield number, grains


def _tables(fd: int, capacity: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield (number of a grain table, ranges of grains in it that hold data)."""
    current, ranges = -1, list[tuple[int, int]]()
    for start, end in extents(fd):
        grain, last = start // GRAIN, -(-min(end, capacity) // GRAIN)
        while grain < last:
            number = grain // GRAINS_PER_TABLE
            stop = min(last, (number + 1) * GRAINS_PER_TABLE)
            if number != current:
                if ranges:
                    yield current, ranges
                current, ranges = number, []
            # Two extents may lie in one grain.
            begin = max(grain, ranges[-1][1]) if ranges else grain
            if begin < stop:
                ranges.append((begin, stop))
            grain = stop
    if ranges:
        yield current, ranges


def _compress_table(
    fd: int, number: int, ranges: list[tuple[int, int]], capacity: int, compress: Callable[[bytes], bytes]
) -> list[tuple[int, bytes]]:
    grains = []
    for begin, stop in ranges:
        data = read_range(fd, begin * GRAIN, min(stop * GRAIN, capacity))
        for grain in range(begin, stop):
            at = (grain - begin) * GRAIN
            piece = data[at : at + GRAIN]
            if len(piece) < GRAIN:
                piece = piece.ljust(GRAIN, b"\0")
            if piece != ZERO_GRAIN:
                packed = compress(piece)
                lba = struct.pack("<QI", grain * GRAIN_SECTORS, len(packed))
                grains.append((grain - number * GRAINS_PER_TABLE, padded(lba + packed)))
    return grains


class DeflateOptions(Model):
    """Options of the formats whose disk is a streamOptimized VMDK."""

    level: int = Field(VMDK_LEVEL, ge=1, le=12, description="libdeflate's level: 12 is smallest and slowest")


def _write(disk: Path, to: Path, options: DeflateOptions, _: Appliance) -> None:
    with to.open("wb") as file:
        write_vmdk(disk, file, level=options.level)


VMDK = Format(
    name="vmdk",
    summary="the disk of the OVA by itself",
    options=DeflateOptions,
    machines=(("vmware", "bios"), ("vmware-nvme", "uefi"), ("vmware-pvscsi", "bios"), ("vmware-lsi", "bios")),
    machines_told="VMware: SATA + vmxnet3 (BIOS), NVMe + vmxnet3 (UEFI), pvscsi (BIOS), LSI SAS (BIOS)",
    taken_by="opened by QEMU; not tried in VMware",
    write=_write,
    open=lambda path, _: checked(Opened(path=path, format="vmdk")),
    compressor="deflate",
    usage="VMware and others, on a SATA, NVMe or SCSI controller. ESXi wants it converted first: "
    "`vmkfstools -i {file} -d thin {image}.vmdk`.",
)
