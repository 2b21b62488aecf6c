"""The disk in an archive that importers take."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from vmimage.formats.format import Opened, checked


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Where the disk lies in an archive that is good."""

    disk_name: str
    offset: int
    size: int


def unpacked(archive: Path, contents: Contents, disk_format: str, work: Path) -> Opened:
    """Copy the disk out of an archive that is good, into `work`, and look whether it is sound.

    Raises:
        ValueError: The disk is damaged.
        OSError: It cannot be read or written.
    """
    disk = work / contents.disk_name
    with archive.open("rb") as source, disk.open("wb") as out:
        source.seek(contents.offset)
        shutil.copyfileobj(source, out, 1 << 20)
        out.truncate(contents.size)
    return checked(Opened(path=disk, format=disk_format))
