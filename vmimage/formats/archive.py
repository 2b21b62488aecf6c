"""The plain tar archives that appliances and boxes are: ustar, no paths, nothing of the host or the time in them."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
USTAR_LIMIT = 8 << 30
LARGEST_TEXT = 1 << 20


def member(name: str, size: int) -> bytes:
    """Return the tar header of a file."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT if size >= USTAR_LIMIT else tarfile.USTAR_FORMAT)


def append(archive: BinaryIO, name: str, data: bytes) -> None:
    """Write a whole member."""
    archive.write(member(name, len(data)) + data + bytes(-len(data) % BLOCK))


def finish(archive: BinaryIO) -> None:
    """Write what ends an archive."""
    archive.write(bytes(2 * BLOCK))
    archive.write(bytes(-archive.tell() % tarfile.RECORDSIZE))


@contextlib.contextmanager
def opened_archive(path: Path) -> Iterator[tuple[tarfile.TarFile, Mapping[str, tarfile.TarInfo]]]:
    """Open an archive: yields it and its members by name, in their order.

    Raises:
        ValueError: It is not such an archive, with the reason.
    """
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError("it is compressed by gzip, and should be a plain tar archive")
    try:
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
            for info in members:
                if info.pax_headers:
                    raise ValueError("it is a pax archive; importers read ustar")
                if "/" in info.name or not info.isreg():
                    raise ValueError(f"its member {info.name} is not a plain file at the top")
                if info.offset_data + info.size > path.stat().st_size:
                    raise ValueError(f"it is cut short within {info.name}")
            yield archive, {info.name: info for info in members}
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"it is no readable tar archive: {error}") from error


def read_text(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """Return a member that is a text.

    Raises:
        ValueError: It is too large for one.
    """
    if info.size > LARGEST_TEXT:
        raise ValueError(f"{info.name} has {info.size} bytes, too many for a text")
    return read_head(archive, info, info.size)


def read_head(archive: tarfile.TarFile, info: tarfile.TarInfo, count: int = BLOCK) -> bytes:
    """Return the start of a member."""
    stream = archive.extractfile(info)
    assert stream is not None  # noqa: S101 - a regular file, checked before
    with stream:
        return stream.read(count)
