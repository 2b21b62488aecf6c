"""The files of an ext4 root, and where on the disk their bytes are; read by debugfs, nothing is mounted."""

from __future__ import annotations

import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmimage.disk.raw import RawDisk
from vmimage.util.errors import VerifyError
from vmimage.util.run import run

ROOT_INODE = 2
JOURNAL_INODE = 8
CHUNK = 4 << 20

_SECTION = re.compile(r"^debugfs: .*\n", re.MULTILINE)
_ENTRY = re.compile(r"^/(\d+)/(\d{6})/(\d+)/(\d+)/(.*)/(\d*)/$", re.MULTILINE)
_RUN = re.compile(r"\((\d+)[^)]*\):(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Bytes of a file that lie together: offset in the file, offset on the disk, length."""

    at: int
    disk: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Node:
    """A file, folder or link.

    Attributes:
        path: Absolute; of a file with several names one node a name.
        size: Of a regular file, in bytes; else 0.
        target: Of a symbolic link that is short enough to lie in the inode; a longer one lies in `runs`.
        runs: In order; what they leave out is zeros.
    """

    path: str
    inode: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: str
    runs: tuple[Run, ...]


@dataclass(frozen=True, kw_only=True)
class Root:
    """What the root file system holds.

    Attributes:
        start: Offset on the disk in bytes; as `block` and `size`.
        journal: Its runs.
        free: (start, end) on the disk, in bytes, of what no file and no table uses.
    """

    start: int
    block: int
    size: int
    nodes: tuple[Node, ...]
    journal: tuple[Run, ...]
    free: tuple[tuple[int, int], ...]


def read_root(disk: RawDisk, work: Path) -> Root:
    """Read the root file system of a disk.

    Args:
        work: A folder for a temporary file.

    Raises:
        VerifyError: There is none, or it cannot be read.
    """
    start = int(disk.root.rsplit("=", 1)[1])
    groups = run(["dumpe2fs", disk.root], error=VerifyError).output
    block, count = (_number(name, groups) for name in ("Block size", "Block count"))
    found = list(_walk(disk, work))
    inodes = sorted({inode for _, inode, *_ in found} | {JOURNAL_INODE})
    details = dict(zip(inodes, _ask(disk, [f"stat <{inode}>" for inode in inodes], work), strict=True))
    nodes = []
    for path, inode, mode, uid, gid, size in found:
        target = re.search(r'^Fast link dest: "(.*)"$', details[inode], re.MULTILINE)
        mtime = re.search(r"^ *mtime: 0x([0-9a-f]{8})", details[inode], re.MULTILINE)
        nodes.append(
            Node(
                path=path,
                inode=inode,
                mode=mode,
                uid=uid,
                gid=gid,
                size=size,
                mtime=int(mtime[1], 16) if mtime else 0,
                target=target[1] if target else "",
                runs=parse_runs(details[inode], start, block),
            )
        )
    free = parse_free(groups, start, block)
    journal = parse_runs(details[JOURNAL_INODE], start, block)
    return Root(start=start, block=block, size=block * count, nodes=tuple(nodes), journal=journal, free=free)


def parse_runs(text: str, start: int, block: int) -> tuple[Run, ...]:
    """Return the runs in what debugfs's `stat` says of an inode; pure. Tables, such as (ETB0) and (IND), are none."""
    _, _, blocks = text.partition("\nEXTENTS:\n") if "\nEXTENTS:\n" in text else text.partition("\nBLOCKS:\n")
    runs = []
    for at, first, last in _RUN.findall(blocks):
        length = (int(last or first) - int(first) + 1) * block
        runs.append(Run(at=int(at) * block, disk=start + int(first) * block, length=length))
    return tuple(sorted(runs, key=lambda one: one.at))


def parse_free(text: str, start: int, block: int) -> tuple[tuple[int, int], ...]:
    """Return the (start, end) of free space in what dumpe2fs says, in bytes on the disk; pure."""
    ranges = []
    for line in re.findall(r"^  Free blocks: (.+)$", text, re.MULTILINE):
        for part in line.split(", "):
            first, _, last = part.partition("-")
            ranges.append((start + int(first) * block, start + (int(last or first) + 1) * block))
    return tuple(ranges)


def tar_stream(nodes: Sequence[Node], read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Yield a tar archive of the tree, as GNU tar would make it in order of names; devices are left out.

    Args:
        read: Gives the bytes of the disk from a start to an end.
    """
    names: dict[int, str] = {}
    for node in sorted(nodes, key=lambda node: node.path):
        info = tarfile.TarInfo(f".{node.path}")
        info.mode, info.uid, info.gid, info.mtime = stat.S_IMODE(node.mode), node.uid, node.gid, node.mtime
        if stat.S_ISDIR(node.mode):
            info.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(node.mode):
            info.type, info.linkname = tarfile.SYMTYPE, node.target or _long_target(node, read)
        elif not stat.S_ISREG(node.mode):
            continue
        elif node.inode in names:
            info.type, info.linkname = tarfile.LNKTYPE, names[node.inode]
        else:
            names[node.inode] = info.name
            info.size = node.size
        yield info.tobuf(tarfile.GNU_FORMAT)
        if info.size:
            yield from contents(node, read)
            yield bytes(-info.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def contents(node: Node, read: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """Yield the bytes of a regular file."""
    done = 0
    for one in node.runs:
        yield from _zeros(min(one.at, node.size) - done)
        done = min(one.at, node.size)
        end = min(one.at + one.length, node.size)
        while done < end:
            at, stop = one.disk + done - one.at, min(end, done + CHUNK)
            yield read(at, at + stop - done)
            done = stop
    yield from _zeros(node.size - done)


def _zeros(count: int) -> Iterator[bytes]:
    for done in range(0, count, CHUNK):
        yield bytes(min(count - done, CHUNK))


def _long_target(node: Node, read: Callable[[int, int], bytes]) -> str:
    return read(node.runs[0].disk, node.runs[0].disk + node.size).decode(errors="surrogateescape")


def _walk(disk: RawDisk, work: Path) -> Iterator[tuple[str, int, int, int, int, int]]:
    """Yield (path, inode, mode, uid, gid, size) of everything below the root, one call of debugfs a level."""
    level = [("", ROOT_INODE)]
    while level:
        below = []
        listings = _ask(disk, [f"ls -p <{inode}>" for _, inode in level], work)
        for (folder, _), listing in zip(level, listings, strict=True):
            for number, mode, uid, gid, name, size in _ENTRY.findall(listing):
                if name in (".", "..") or number == "0":
                    continue
                yield f"{folder}/{name}", int(number), int(mode, 8), int(uid), int(gid), int(size or 0)
                if stat.S_ISDIR(int(mode, 8)):
                    below.append((f"{folder}/{name}", int(number)))
        level = below


def _ask(disk: RawDisk, requests: Sequence[str], work: Path) -> list[str]:
    """Return what debugfs says to each request."""
    script = work / "debugfs.requests"
    script.write_text("".join(f"{request}\n" for request in requests))
    output = run(["debugfs", "-f", script, disk.root], error=VerifyError).output
    script.unlink()
    # It repeats each request before the answer; what it says of itself comes before the first.
    answers = _SECTION.split(output)[1:]
    if len(answers) != len(requests):
        raise VerifyError(f"cannot read the root file system of {disk.path}: debugfs answered in another form")
    return answers


def _number(name: str, header: str) -> int:
    match = re.search(rf"^{name}: +(\d+)$", header, re.MULTILINE)
    if not match:
        raise VerifyError(f"dumpe2fs does not tell the {name.lower()}")
    return int(match[1])
