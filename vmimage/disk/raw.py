"""A raw disk read from outside, without mounting it: partitions, files of the ext4 root, and its bare bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmimage.util.confine import run_confined
from vmimage.util.errors import VerifyError

ROOT_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
"""Partition type of an x86-64 root, see the Discoverable Partitions Specification."""


@dataclass(frozen=True)
class RawDisk:
    """A disk image in raw format with a GPT and an ext4 root partition."""

    path: Path

    @cached_property
    def root(self) -> str:
        """The root file system as e2fsprogs takes it: PATH?offset=BYTES."""
        said = run_confined(["sfdisk", "--json", self.path], error=VerifyError).output
        try:
            table = json.loads(said)["partitiontable"]
            starts = [int(part["start"]) for part in table.get("partitions", []) if part["type"] == ROOT_TYPE]
            sector = int(table.get("sectorsize", 512))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise VerifyError(f"{self.path}: its partition table cannot be read: {error}") from error
        if len(starts) != 1:
            raise VerifyError(f"{self.path} has {len(starts)} root partitions instead of one")
        return f"{self.path}?offset={starts[0] * sector}"

    def owner(self, offset: int) -> str:
        """Return the path of the file that holds a byte of the disk; nothing for free space and outside the root."""
        start = int(self.root.rsplit("=", 1)[1])
        header = self._debugfs("show_super_stats -h")
        size = re.search(r"^Block size:\s+(\d+)", header, re.MULTILINE)
        if offset < start or not size:
            return ""
        inode = re.search(r"^\d+\s+(\d+)$", self._debugfs(f"icheck {(offset - start) // int(size[1])}"), re.MULTILINE)
        path = re.search(r"^\d+\s+(/.*)$", self._debugfs(f"ncheck {inode[1]}"), re.MULTILINE) if inode else None
        return path[1] if path else ""

    def _debugfs(self, request: str) -> str:
        return run_confined(["debugfs", "-R", request, self.root], error=VerifyError).output

    def search(self, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, bytes]]:
        """Find a pattern in all allocated bytes of the disk: yields (offset, what matched)."""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            for start, end in extents(file.fileno()):
                for match in pattern.finditer(view, start, end):
                    yield match.start(), match.group()


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) byte ranges of a file that are not holes; see lseek(2), SEEK_DATA."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def allocated(disk: Path) -> int:
    """Return the bytes of a raw disk that are no holes."""
    with disk.open("rb") as file:
        return sum(end - start for start, end in extents(file.fileno()))


def read_range(fd: int, start: int, end: int) -> bytes:
    """Read the bytes from `start` to `end`.

    Raises:
        OSError: The file is shorter than it was.
    """
    parts = []
    while start < end:
        part = os.pread(fd, end - start, start)
        if not part:
            raise OSError(f"the disk ends at byte {start}, before its size")
        parts.append(part)
        start += len(part)
    return b"".join(parts)


BLOCK = 64 << 10


def content_digest(path: Path, *, between: Callable[[], None] = lambda: None) -> str:
    """Return a SHA-256 of what a disk holds: of each block of 64 KiB that is not all zeros, its place and bytes.

    Unlike that of the file it does not read holes, and does not depend on where they are.

    Args:
        between: Is called before each block; what it raises ends the reading, which may take minutes.
    """
    zeros = bytes(BLOCK)
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    done = 0
    with path.open("rb") as file:
        for start, end in extents(file.fileno()):
            at = max(done, start - start % BLOCK)
            while at < end:
                between()
                block = os.pread(file.fileno(), BLOCK, at)
                if block != zeros[: len(block)]:
                    digest.update(at.to_bytes(8, "little") + block)
                at += BLOCK
            done = max(done, at)
    return digest.hexdigest()
