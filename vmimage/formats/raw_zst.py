"""raw.zst: the raw disk, compressed by zstd; `zstd -d --sparse` or any zstd reader gives the disk back.

Only allocated extents are read. A hole becomes frames of zeros that were compressed once, so that 40 GiB of nothing
cost milliseconds. Frames can stand behind one another: https://www.rfc-editor.org/rfc/rfc8878#section-3
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import BinaryIO, cast

import zstandard
from pydantic import Field

from vmimage.disk.raw import extents, read_range
from vmimage.formats.format import MOST_DATA_BYTES, MOST_DATA_TOLD, Appliance, Format, Opened, require_size
from vmimage.util.model import Model

LEVEL = 3
"""What `invoke bench export` found to be a good bargain of time and size."""

FRAME = 4 << 20
HOLE_FRAME = 128 << 20


def write_raw_zst(disk: Path, to: Path, *, level: int, threads: int | None = None) -> None:
    """Compress a raw disk; the same disk always gives the same bytes.

    Raises:
        OSError: The disk cannot be read, or the file not written; `to` is then incomplete.
    """
    workers = threads or os.cpu_count() or 1
    waiting: deque[Future[bytes]] = deque()
    with disk.open("rb") as file, to.open("wb") as out, ThreadPoolExecutor(max_workers=workers) as pool:
        for start, end, hole in _frames(file.fileno(), disk.stat().st_size):
            if hole:
                waiting.append(pool.submit(_zeros, end - start, level))
            else:
                waiting.append(pool.submit(_data, file.fileno(), start, end, level))
            if len(waiting) > 4 * workers:
                out.write(waiting.popleft().result())
        for done in waiting:
            out.write(done.result())


def read_raw_zst(file: Path, to: Path) -> None:
    """Decompress into a sparse raw disk.

    Raises:
        OSError: It cannot be read, or the disk not be written; `to` is then incomplete.
        ValueError: It is damaged, is larger, or holds more, than any disk that is made here; `to` is then incomplete.
    """
    if not file.is_file():
        raise ValueError("it is no regular file")
    end = secrets.token_bytes(64) * 1024
    try:
        with file.open("rb") as source, to.open("w+b") as out:
            size = _decompress(_Followed(source, zstandard.ZstdCompressor().compress(end)), out) - len(end)
            out.seek(max(size, 0))
            if size <= 0 or out.read() != end:
                raise ValueError(f"{file.name} is damaged: it is cut short")
            out.truncate(size)
    except zstandard.ZstdError as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error


class _Followed(RawIOBase):
    """A file and one more frame behind it, which is read as what it is only if the last frame before it is whole.

    The library takes a frame that is cut short for the end of all.
    """

    def __init__(self, file: BinaryIO, frame: bytes) -> None:
        super().__init__()
        self._parts = [file, BytesIO(frame)]

    def read(self, count: int = -1, /) -> bytes:
        """Return some bytes; none at the end."""
        while self._parts:
            data = self._parts[0].read(count)
            if data:
                return data
            self._parts.pop(0)
        return b""


def _decompress(source: RawIOBase, out: BinaryIO) -> int:
    """Write what is in the frames, zeros as holes; returns the bytes that it comes to."""
    zeros = bytes(1 << 20)
    size = held = 0
    reader = zstandard.ZstdDecompressor().stream_reader(cast("BinaryIO", source), read_across_frames=True)
    while piece := reader.read(len(zeros)):
        size += len(piece)
        require_size(size)
        if piece == zeros[: len(piece)]:
            out.seek(len(piece), os.SEEK_CUR)
            continue
        held += len(piece)
        if held > MOST_DATA_BYTES:
            raise ValueError(f"{held} bytes in it are no zeros, {MOST_DATA_TOLD}")
        out.write(piece)
    out.truncate(size)
    return size


def _frames(fd: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Cut a disk into (start, end, is it a hole)."""
    at = 0
    for start, end in [*extents(fd), (size, size)]:
        while at < start:
            stop = min(start, at + HOLE_FRAME)
            yield at, stop, True
            at = stop
        while at < min(end, size):
            stop = min(end, size, at + FRAME)
            yield at, stop, False
            at = stop


def _data(fd: int, start: int, end: int, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(read_range(fd, start, end))


@cache
def _zeros(count: int, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(bytes(count))


class ZstdOptions(Model):
    """Options of raw.zst."""

    level: int = Field(LEVEL, ge=1, le=19, description="zstd's level: 19 is smallest and slowest")


def _write(disk: Path, to: Path, options: ZstdOptions, _: Appliance) -> None:
    write_raw_zst(disk, to, level=options.level)


def _open(path: Path, work: Path) -> Opened:
    disk = work / "disk.raw"
    read_raw_zst(path, disk)
    return Opened(path=disk, format="raw")


RAW_ZST = Format(
    name="raw.zst",
    summary="clouds, `dd`",
    options=ZstdOptions,
    machines=(("virtio-scsi", "bios"), ("vmware-nvme", "uefi"), ("q35-sata", "uefi")),
    machines_told="virtio-scsi (BIOS), NVMe (UEFI), SATA + e1000e (UEFI)",
    taken_by="unpacked by zstd",
    write=_write,
    open=_open,
    compressor="zstd",
    usage="the bare disk; `zstd -d --sparse` unpacks it.",
)
