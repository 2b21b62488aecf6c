"""The floor of a build: the bytes that must be moved, at the speed that this disk and these cores have now.

What must be moved, whatever the method: the packages come and are written; what they hold is written to a disk; the
disk is read and compressed once for each format; the files are written, read again and hashed. All is summed as if
nothing overlapped, each at its measured speed. Not in it: the network, unpacking xz, and every instruction of a guest.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import deflate
import requests
import zstandard

from vmimage.disk.raw import allocated, extents
from vmimage.formats.all import BY_NAME
from vmimage.formats.qcow2 import ZSTD_LEVEL
from vmimage.formats.vmdk import VMDK_LEVEL
from vmimage.util.errors import FetchError

SAMPLE_BYTES = 256 << 20
BLOCK = 64 << 10
CHUNK = 1 << 20
SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Bytes a second: of the disk in sequence and flushed, and of all cores together."""

    write: float
    read: float
    deflate: float
    zstd: float
    sha256: float


@dataclass(frozen=True, kw_only=True)
class FloorPart:
    """Bytes that must be moved in one way."""

    what: str
    bytes: int
    speed: float

    @property
    def seconds(self) -> float:
        """How long that takes at least."""
        return self.bytes / self.speed


def parts(*, packages: int, content: int, files: Mapping[str, int], speeds: Speeds) -> list[FloorPart]:
    """Return the parts of the floor; pure.

    Args:
        packages: Bytes of the packages as the mirror sends them.
        content: Bytes allocated on the sealed disk.
        files: Format -> bytes of the exported file.
    """
    shipped = sum(files.values())
    compressors = {"zstd": speeds.zstd, "deflate": speeds.deflate, "none": speeds.write}
    return [
        FloorPart(what="write the packages that the mirror sends", bytes=packages, speed=speeds.write),
        FloorPart(what="write what is in them to a disk", bytes=content, speed=speeds.write),
        FloorPart(what="read the sealed disk", bytes=content, speed=speeds.read),
        *(
            FloorPart(what=f"compress it to {kind}", bytes=content, speed=compressors[BY_NAME[kind].compressor])
            for kind in files
        ),
        FloorPart(what="write the files", bytes=shipped, speed=speeds.write),
        FloorPart(what="read them again", bytes=shipped, speed=speeds.read),
        FloorPart(what="hash them", bytes=shipped, speed=speeds.sha256),
    ]


def sample(disk: Path, limit: int = SAMPLE_BYTES) -> bytes:
    """Return allocated bytes of a raw disk, taken evenly over all of it."""
    step = max(1, allocated(disk) // limit)
    with disk.open("rb") as file:
        offsets = [at for start, end in extents(file.fileno()) for at in range(start, end, CHUNK)][::step]
        return b"".join(os.pread(file.fileno(), CHUNK, at) for at in offsets)[:limit]


def measure(data: bytes, folder: Path) -> Speeds:
    """Measure this disk and these cores with a sample of the disk that is built."""
    file = folder / "floor"
    write = _rate(data, lambda: _write(data, file))
    with file.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read = _rate(data, lambda: _read(file))
    file.unlink()

    def by_all_cores(size: int, work: Callable[[bytes], object]) -> float:
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            return _rate(data, lambda: [None for _ in pool.map(work, blocks)])

    return Speeds(
        write=write,
        read=read,
        deflate=by_all_cores(BLOCK, lambda block: deflate.zlib_compress(block, VMDK_LEVEL)),
        zstd=by_all_cores(BLOCK, lambda block: zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(block)),
        sha256=by_all_cores(CHUNK, lambda block: hashlib.sha256(block).digest()),
    )


def _rate(data: bytes, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return len(data) / (time.perf_counter() - started)


def _write(data: bytes, to: Path) -> None:
    with to.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(CHUNK):
            pass


def package_bytes(lines: Sequence[str], packages: Mapping[str, str], arch: str) -> int:
    """Return the bytes of these packages as the mirror sends them, by its own lists.

    Args:
        lines: `deb URL SUITE COMPONENTS` lines of sources.list.
        packages: Name -> version.

    Raises:
        FetchError: A list cannot be had, or none has one of the packages.
    """
    found: dict[tuple[str, str], int] = {}
    for line in lines:
        url, suite, *components = re.sub(r"\[[^\]]*\]", "", line).split()[1:]
        for component in components:
            where = f"{url.rstrip('/')}/dists/{suite}/{component}/binary-{arch}/Packages.xz"
            try:
                answer = requests.get(where, timeout=SECONDS)
                answer.raise_for_status()
                found |= dict(package_sizes(lzma.decompress(answer.content).decode()))
            except (requests.exceptions.RequestException, lzma.LZMAError) as error:
                raise FetchError(f"cannot read {where}: {error}", hint="the mirror's own lists tell sizes") from error
    missing = packages.items() - found.keys()
    if missing:
        raise FetchError(f"the mirror no longer has {', '.join(map(' '.join, sorted(missing)))}")
    return sum(found[item] for item in packages.items())


def package_sizes(text: str) -> Iterator[tuple[tuple[str, str], int]]:
    """Read a list of packages: yields ((name, version), bytes); pure."""
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Size): (\S+)$", paragraph, re.MULTILINE))
        if len(fields) == 3:  # noqa: PLR2004 - all of them
            yield (fields["Package"], fields["Version"]), int(fields["Size"])
