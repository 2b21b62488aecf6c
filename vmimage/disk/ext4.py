"""The files of an ext4 root, and where on the disk their bytes are; read by debugfs, nothing is mounted."""

from __future__ import annotations

import fnmatch
import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmimage.disk.raw import RawDisk, read_range
from vmimage.util.confine import Limits, run_confined
from vmimage.util.errors import VerifyError

ROOT_INODE = 2
JOURNAL_INODE = 8
CHUNK = 4 << 20

MOST_READ_BYTES = 1 << 20
"""Of a file that is looked into."""
MOST_BYTES = 1 << 38
"""Of all files together; those that have several names count as often."""
MOST_NODES = 2_000_000
LONGEST_TARGET = 4096
"""Bytes of a link's target, as Linux has it."""
MOST_LEVELS = 250
"""Of a tree; a folder that contains itself has no end."""
AT_ONCE = 20_000
"""Requests to one call of debugfs."""
LIMITS = Limits(output=256 << 20)
"""Of one call of debugfs."""

_SECTION = re.compile(r"^debugfs: (.*)\n", re.MULTILINE)
_ENTRY = re.compile(r"^/(\d+)/(\d{6})/(\d+)/(\d+)/(.*)/(\d*)/$", re.MULTILINE)
_LONG_ENTRY = re.compile(r" *\d+ +\d+ \(\d+\) +\d+ +\d+ +\d+ .*")
_LINK = '\nFast link dest: "'
_RUN = re.compile(r"\((\d+)[^)]*\):(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Bytes of a file that lie together: offset in the file, offset on the disk, length."""

    at: int
    disk: int
    length: int


@dataclass(frozen=True, kw_only=True, slots=True)
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


@dataclass(frozen=True)
class Tree:
    """The files of a disk, by their paths; nothing of it is copied to this host, and no link is followed."""

    disk: Path
    nodes: Mapping[str, Node]

    def find(self, pattern: str) -> list[Node]:
        """Return what has a path of this form; * stands for slashes too."""
        return [node for path, node in self.nodes.items() if fnmatch.fnmatchcase(path, pattern)]

    def read(self, path: str, *, most: int = MOST_READ_BYTES) -> bytes:
        """Return the bytes of a regular file.

        Raises:
            VerifyError: It is none, or larger than `most`.
        """
        node = self.nodes.get(path)
        if not node or not stat.S_ISREG(node.mode):
            raise VerifyError(f"the image has no file {path}")
        if node.size > most:
            raise VerifyError(f"{path} of the image has {node.size} bytes, more than {most}")
        with self.disk.open("rb") as file:
            return b"".join(contents(node, lambda start, end: read_range(file.fileno(), start, end)))


def read_tree(disk: RawDisk, work: Path) -> Tree:
    """Read what is in the root file system of a disk.

    Args:
        work: A folder for a temporary file.

    Raises:
        VerifyError: There is none, or it cannot be read.
    """
    return Tree(disk.path, {node.path: node for node in read_root(disk, work).nodes})


def read_root(disk: RawDisk, work: Path) -> Root:
    """Read the root file system of a disk.

    Args:
        work: A folder for a temporary file.

    Raises:
        VerifyError: There is none, or it cannot be read.
    """
    start = int(disk.root.rsplit("=", 1)[1])
    groups = _run(["dumpe2fs", disk.root])
    block, count = (_number(name, groups) for name in ("Block size", "Block count"))
    found = list(_walk(disk, work))
    inodes = sorted({inode for _, inode, *_ in found} | {JOURNAL_INODE})
    # As they come: of a million files, the texts together are gigabytes.
    texts = _ask(disk, [f"stat <{inode}>" for inode in inodes], work)
    details = {inode: _details(text, start, block) for inode, text in zip(inodes, texts, strict=True)}
    nodes = []
    for path, inode, mode, uid, gid, size in found:
        mtime, target, runs = details[inode]
        nodes.append(
            Node(path=path, inode=inode, mode=mode, uid=uid, gid=gid, size=size, mtime=mtime, target=target, runs=runs)
        )
    free = parse_free(groups, start, block)
    _, _, journal = details[JOURNAL_INODE]
    root = Root(start=start, block=block, size=block * count, nodes=tuple(nodes), journal=journal, free=free)
    require_within(disk, root)
    return root


def _details(text: str, start: int, block: int) -> tuple[int, str, tuple[Run, ...]]:
    """Return time, target of a link, and runs, in what debugfs's `stat` says of an inode."""
    # A link may lead to any text, also to one like those that stand before it.
    about, _, target = text.partition(_LINK)
    mtime = re.search(r"^ *mtime: 0x([0-9a-f]{8})", about, re.MULTILINE)
    return int(mtime[1], 16) if mtime else 0, target.rstrip("\n").removesuffix('"'), parse_runs(about, start, block)


def require_within(disk: RawDisk, root: Root) -> None:
    """Check that all that a file system speaks of is in it, and it is on the disk.

    Raises:
        VerifyError: It is not, or its files come to an absurd size.
    """
    end = root.start + root.size
    if end > disk.path.stat().st_size:
        raise VerifyError(f"{disk.path}: its root file system is larger than its disk")
    runs = [*root.journal, *(one for node in root.nodes for one in node.runs)]
    places = [*root.free, *((one.disk, one.disk + one.length) for one in runs)]
    if any(not root.start <= first < last <= end for first, last in places):
        raise VerifyError(f"{disk.path}: its root file system speaks of blocks that are not in it")
    if sum(node.size for node in root.nodes) > MOST_BYTES:
        raise VerifyError(f"{disk.path}: its files have more than {MOST_BYTES >> 30} GiB, holes included")


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
            info.type, info.linkname = tarfile.SYMTYPE, link_target(node, read)
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


def link_target(node: Node, read: Callable[[int, int], bytes]) -> str:
    """Return where a symbolic link leads.

    Raises:
        VerifyError: It is not told.
    """
    if node.target:
        return node.target
    if not node.runs or node.size > LONGEST_TARGET:
        raise VerifyError(f"{node.path} is a link of which it is not told where it leads")
    return read(node.runs[0].disk, node.runs[0].disk + node.size).decode(errors="surrogateescape")


def _walk(disk: RawDisk, work: Path) -> Iterator[tuple[str, int, int, int, int, int]]:
    """Yield (path, inode, mode, uid, gid, size) of everything below the root, one call of debugfs a level.

    Raises:
        VerifyError: It is no tree (a name that stands twice or holds a slash, a folder in itself), or of absurd size.
    """
    level = [("", ROOT_INODE)]
    folders, count = {ROOT_INODE}, 0
    for _ in range(MOST_LEVELS):
        below = []
        both = _ask(disk, [f"ls {form} <{inode}>" for _, inode in level for form in ("-p", "-l")], work)
        for (folder, _), listing, again in zip(level, both, both, strict=True):
            _require_same_lines(disk, folder, listing, again)
            for name, inode, mode, uid, gid, size in _entries(disk, folder, listing):
                count += 1
                if stat.S_ISDIR(mode):
                    below.append((f"{folder}/{name}", inode))
                    if inode in folders:
                        raise VerifyError(f"{disk.path}: {folder} contains a folder that is elsewhere, too")
                    folders.add(inode)
                yield f"{folder}/{name}", inode, mode, uid, gid, size
        if count > MOST_NODES:
            raise VerifyError(f"{disk.path} holds more than {MOST_NODES} files")
        if not below:
            return
        level = below
    raise VerifyError(f"{disk.path} has folders that are more than {MOST_LEVELS} levels deep")


def _require_same_lines(disk: RawDisk, folder: str, listing: str, again: str) -> None:
    """Check that no name is of several lines, which would be taken for other entries.

    Args:
        again: The same folder in a form whose lines begin otherwise: what is two entries in one is none in the other.
    """
    lines = [line for line in again.splitlines() if line]
    if not all(map(_LONG_ENTRY.fullmatch, lines)) or len(lines) != len(list(filter(None, listing.splitlines()))):
        raise VerifyError(f"{disk.path}: cannot read the folder {folder or '/'}: a name in it has several lines")


def _entries(disk: RawDisk, folder: str, listing: str) -> Iterator[tuple[str, int, int, int, int, int]]:
    """Yield (name, inode, mode, uid, gid, size) of what debugfs lists of a folder."""
    names = set[str]()
    for line in filter(None, listing.splitlines()):
        entry = _ENTRY.fullmatch(line)
        if not entry:
            raise VerifyError(f"{disk.path}: cannot read the folder {folder or '/'}: {line}")
        inode, mode, uid, gid, name, size = entry.groups()
        if name in (".", "..") or inode == "0":
            continue
        if "/" in name or name in names:
            raise VerifyError(f"{disk.path}: {folder or '/'} has a name that is none, or twice: {name}")
        names.add(name)
        yield name, int(inode), int(mode, 8), int(uid), int(gid), int(size or 0)


def _ask(disk: RawDisk, requests: Sequence[str], work: Path) -> Iterator[str]:
    """Yield what debugfs says to each request."""
    script = work / "debugfs.requests"
    for start in range(0, len(requests), AT_ONCE):
        some = requests[start : start + AT_ONCE]
        script.write_text("".join(f"{request}\n" for request in some))
        output = _run(["debugfs", "-f", script, disk.root])
        script.unlink()
        # It repeats each request before the answer; what it says of itself comes before the first.
        parts = _SECTION.split(output)[1:]
        if parts[::2] != list(some):
            raise VerifyError(f"cannot read the root file system of {disk.path}: debugfs answered in another form")
        yield from parts[1::2]


def _run(argv: Sequence[str | Path]) -> str:
    return run_confined(argv, limits=LIMITS, error=VerifyError).output


def _number(name: str, header: str) -> int:
    match = re.search(rf"^{name}: +(\d+)$", header, re.MULTILINE)
    if not match:
        raise VerifyError(f"dumpe2fs does not tell the {name.lower()}")
    return int(match[1])
