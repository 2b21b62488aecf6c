"""`invoke size`: what the bytes of an image are.

Each byte of the disk has one owner. The share in the qcow2 is not estimated: each cluster is compressed as qemu-img
does it, by itself, and its compressed bytes are divided among the owners of its blocks.
"""

from __future__ import annotations

import re
import stat
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import zstandard

from vmimage import PROJECT
from vmimage.disk.ext4 import Node, Root, Run, contents, read_root, tar_stream
from vmimage.disk.raw import RawDisk, extents, read_range
from vmimage.formats.qcow2 import ZSTD_LEVEL
from vmimage.plan import laid_files
from vmimage.spec.model import Component
from vmimage.util.errors import VerifyError

BLOCK = 4096
"""Bytes that have one owner: the block of the file system, and what qemu-img looks for zeros in."""

GROUPS = ("boot", "packages", "components", "container images", "caches and others", "file system", "not trimmed")
Owner = tuple[str, str]
TABLES: Owner = ("file system", "tables of inodes and blocks")
FOLDERS: Owner = ("file system", "folders")
JOURNAL: Owner = ("file system", "journal")
FREE: Owner = ("not trimmed", "free space")
OUTSIDE: Owner = ("boot", "partition table, BIOS GRUB, ESP")

# Modules by folder: drivers/net, fs, …
MODULE = re.compile(r"^/usr/lib/modules/[^/]+/kernel/(drivers/[^/]+|[^/]+)/")
MOST_LIST_BYTES = 16 << 20
"""Of dpkg's list of the files of a package."""
MOST_OWNERS = 65535
DPKG_LISTS = "/var/lib/dpkg/info/"
CONTAINER_IMAGES = "/var/lib/rancher/k3s/agent/images/"

# The first that the path begins with.
BOOT = {
    "/boot/initrd": "initrd",
    "/boot/vmlinuz": "kernel",
    "/boot/grub/": "GRUB",
    "/boot/": "kernel",
    "/usr/lib/modules/": "modules' indexes",
    "/usr/lib/firmware/": "firmware",
}
UNOWNED = {
    "/var/lib/dpkg/": "dpkg's database",
    "/usr/lib/udev/hwdb.bin": "hardware database",
    "/var/cache/": "caches",
    "/var/log/": "logs",
    "/etc/": "settings",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What belongs together.

    Attributes:
        disk_bytes: Of its blocks on the raw disk that are not all zeros.
        qcow2_bytes: Its share of the compressed clusters.
    """

    group: str
    name: str
    files: int
    disk_bytes: int
    qcow2_bytes: int


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """What an image consists of.

    Attributes:
        parts: The largest first, by `qcow2_bytes`, within the order of GROUPS.
        tar_zst_bytes: The same tree as a tar, compressed by zstd at the same level in one piece.
    """

    parts: tuple[Part, ...]
    tar_zst_bytes: int

    def total(self, group: str = "") -> Part:
        """Return a group, or everything, as one part."""
        parts = [part for part in self.parts if group in ("", part.group)]
        files, disk, qcow2 = (sum(getattr(p, name) for p in parts) for name in ("files", "disk_bytes", "qcow2_bytes"))
        return Part(group=group, name="", files=files, disk_bytes=disk, qcow2_bytes=qcow2)


def mib(count: float) -> str:
    """Return a size for people, in the one unit in which sizes of one image compare well."""
    return f"{count / (1 << 20):.1f} MiB"


def measure(path: Path, work: Path, components: Mapping[str, str], cluster: int) -> ImageSize:
    """Measure a raw disk.

    Args:
        work: A folder for temporary files.
        components: Path in the image -> component that lays it there.
        cluster: Bytes that the qcow2 compresses by themselves.

    Raises:
        VerifyError: It has no root file system that can be read.
    """
    root = read_root(RawDisk(path), work)
    with path.open("rb") as file, ThreadPoolExecutor() as pool:
        fd = file.fileno()
        tar = pool.submit(_tar_zst, root, fd)
        owners = owners_of(root.nodes, package_of(root.nodes, fd), components)
        table, names = block_owners(root, path.stat().st_size, owners)
        disk_bytes: Counter[int] = Counter()
        qcow2_bytes: Counter[float] = Counter()
        for blocks, compressed in pool.map(lambda at: _cluster(fd, at, cluster, table), _clusters(fd, cluster)):
            disk_bytes.update({owner: count * BLOCK for owner, count in blocks.items()})
            qcow2_bytes.update({o: compressed * count / blocks.total() for o, count in blocks.items()})
        tar_zst_bytes = tar.result()
    files = Counter(owner for node, owner in zip(root.nodes, owners, strict=True) if stat.S_ISREG(node.mode))
    parts = [
        Part(group=g, name=n, files=files[g, n], disk_bytes=disk_bytes[i], qcow2_bytes=round(qcow2_bytes[i]))
        for i, (g, n) in enumerate(names)
        if disk_bytes[i]
    ]
    parts.sort(key=lambda part: (GROUPS.index(part.group), -part.qcow2_bytes, part.name))
    return ImageSize(parts=tuple(parts), tar_zst_bytes=tar_zst_bytes)


def component_files(names: Sequence[str], components: Mapping[str, Component]) -> dict[str, str]:
    """Return path in the image -> component, for files laid over its root and for programs that are pins."""
    found: dict[str, str] = {}
    for name in names:
        component = components[name]
        if component.step:
            found |= dict.fromkeys(laid_files(PROJECT, component.step), name)
        found |= {f"/usr/local/bin/{pin}": name for pin in component.pins}
    return found


def package_of(nodes: Sequence[Node], fd: int) -> dict[str, str]:
    """Return path -> package, from the lists that dpkg keeps in the image."""
    found: dict[str, str] = {}
    for node in nodes:
        if node.path.startswith(DPKG_LISTS) and node.path.endswith(".list") and stat.S_ISREG(node.mode):
            if node.size > MOST_LIST_BYTES:
                raise VerifyError(f"{node.path} of the image has {node.size} bytes, more than {MOST_LIST_BYTES}")
            name = node.path.removeprefix(DPKG_LISTS).removesuffix(".list").partition(":")[0]
            text = b"".join(contents(node, lambda start, end: read_range(fd, start, end))).decode(errors="replace")
            found |= {merged_usr(path): name for path in text.splitlines()}
    return found


def merged_usr(path: str) -> str:
    """Return where a file lies that its package has in /bin, /sbin or /lib."""
    return f"/usr{path}" if path.startswith(("/bin/", "/sbin/", "/lib/", "/lib64/")) else path


def owners_of(nodes: Sequence[Node], packages: Mapping[str, str], components: Mapping[str, str]) -> list[Owner]:
    """Return the owner of each node; pure."""
    return [FOLDERS if stat.S_ISDIR(n.mode) else owner_of(n.path, packages, components) for n in nodes]


def owner_of(path: str, packages: Mapping[str, str], components: Mapping[str, str]) -> Owner:
    """Return (group, name) for the path of a file; pure."""
    module = MODULE.match(path)
    choices = (
        ("container images", path.startswith(CONTAINER_IMAGES) and path.removeprefix(CONTAINER_IMAGES)),
        ("boot", f"{module[1]} modules" if module else _by_prefix(path, BOOT)),
        ("components", components.get(path)),
        ("packages", packages.get(path)),
        ("caches and others", "/__pycache__/" in path and "Python bytecode"),
        ("components", path.startswith("/usr/local/") and "others"),
        ("caches and others", _by_prefix(path, UNOWNED) or "others"),
    )
    return next((group, name) for group, name in choices if name)


def _by_prefix(path: str, rules: Mapping[str, str]) -> str | None:
    return next((name for prefix, name in rules.items() if path.startswith(prefix)), None)


def block_owners(root: Root, disk_size: int, owners: Sequence[Owner]) -> tuple[array[int], list[Owner]]:
    """Return for each block of the disk the number of its owner, and the owners by number; pure."""
    numbers = {owner: i for i, owner in enumerate(dict.fromkeys([OUTSIDE, TABLES, JOURNAL, FREE, *owners]))}
    if len(numbers) > MOST_OWNERS:
        raise VerifyError(f"the image has {len(numbers)} parts, more than {MOST_OWNERS}")
    table = array("H", [numbers[OUTSIDE]]) * (-(-disk_size // BLOCK))

    def fill(start: int, end: int, owner: Owner) -> None:
        first, last = start // BLOCK, -(-end // BLOCK)
        table[first:last] = array("H", [numbers[owner]]) * (last - first)

    def fill_runs(runs: Sequence[Run], owner: Owner) -> None:
        for one in runs:
            fill(one.disk, one.disk + one.length, owner)

    fill(root.start, root.start + root.size, TABLES)
    for start, end in root.free:
        fill(start, end, FREE)
    fill_runs(root.journal, JOURNAL)
    for node, owner in zip(root.nodes, owners, strict=True):
        fill_runs(node.runs, owner)
    return table, list(numbers)


def _clusters(fd: int, cluster: int) -> Iterator[int]:
    """Yield the offset of each cluster of which anything is allocated."""
    done = 0
    for start, end in extents(fd):
        for at in range(max(done, start - start % cluster), end, cluster):
            yield at
            done = at + cluster


def _cluster(fd: int, at: int, size: int, table: Sequence[int]) -> tuple[Counter[int], int]:
    """Return blocks by owner, zeros left out, and the bytes of a cluster when it is compressed."""
    data = read_range(fd, at, min(at + size, len(table) * BLOCK))
    zeros = bytes(BLOCK)
    used = [i for i in range(len(data) // BLOCK) if data[i * BLOCK : (i + 1) * BLOCK] != zeros]
    if not used:
        return Counter(), 0
    # qemu-img stores a cluster as it is when compression gains nothing.
    compressed = len(zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=False).compress(data))
    return Counter(table[at // BLOCK + i] for i in used), min(compressed, size)


def _tar_zst(root: Root, fd: int) -> int:
    """Return the bytes of the tree as a tar compressed by zstd."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
    pieces = tar_stream(root.nodes, lambda start, end: read_range(fd, start, end))
    return sum(len(compressor.compress(piece)) for piece in pieces) + len(compressor.flush())
