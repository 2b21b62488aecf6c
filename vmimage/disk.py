"""A raw disk read from outside, without mounting it: partitions, files of the ext4 root, and its bare bytes."""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmimage.errors import VerifyError
from vmimage.run import run

ROOT_TYPE = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
"""Partition type of an x86-64 root, see the Discoverable Partitions Specification."""


@dataclass(frozen=True)
class RawDisk:
    """A disk image in raw format with a GPT and an ext4 root partition."""

    path: Path

    @cached_property
    def root(self) -> str:
        """The root file system as e2fsprogs takes it: PATH?offset=BYTES."""
        table = json.loads(run(["sfdisk", "--json", self.path], error=VerifyError).output)["partitiontable"]
        starts = [part["start"] for part in table["partitions"] if part["type"] == ROOT_TYPE]
        if len(starts) != 1:
            raise VerifyError(f"{self.path} has {len(starts)} root partitions instead of one")
        return f"{self.path}?offset={starts[0] * table.get('sectorsize', 512)}"

    def dump(self, folder: str, to: Path) -> Path:
        """Copy a folder of the root file system to the host; returns where it is (owners are not kept)."""
        done = run(["debugfs", "-R", f'rdump "{folder}" "{to}"', self.root], error=VerifyError)
        copy = to / Path(folder).name
        if not copy.is_dir():
            raise VerifyError(f"cannot read {folder} of {self.path}:\n{done.output}")
        return copy

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
