"""What is in an image, as `invoke diff` compares it. Its files stand in a list on the disk: there may be a million."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmimage.commands.diff.subject import Subject
from vmimage.disk.dpkg import MOST_STATUS_BYTES, STATUS, parse_status
from vmimage.disk.ext4 import Node, Root, Run, Tree, contents, link_target, read_root
from vmimage.disk.raw import RawDisk, extents, read_range
from vmimage.formats.format import write_raw
from vmimage.stages.verify.subject import opened_disk, require_recorded
from vmimage.util.errors import VerifyError
from vmimage.util.json_file import parse_json

FACTS = "/etc/vmimage/release.json"
BLOCK = 4096
DOCUMENTATION = "/usr/share/doc/"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """An image.

    Attributes:
        disk: Raw.
        listing: A file with all nodes in order of their paths, a line each.
        sizes: What -> bytes; without the files in which it is handed out.
        boot: SHA-256 of what lies outside of the root file system: partition table, boot loader, ESP.
        packages: Package -> version; None where the image has no dpkg.
        pins: Pin -> version, and its SHA-256 if that is known; None where the image does not tell.
        changelogs: The nodes in DOCUMENTATION.
    """

    disk: Path
    listing: Path
    sizes: Mapping[str, int]
    boot: str
    packages: Mapping[str, str] | None
    pins: Mapping[str, str] | None
    changelogs: Tree

    def nodes(self) -> Iterator[Node]:
        """Yield its files, folders and links in order of their paths."""
        with self.listing.open() as file:
            for line in file:
                *fields, runs = json.loads(line)
                path, inode, mode, uid, gid, size, target = fields
                parts = tuple(Run(at=at, disk=disk, length=length) for at, disk, length in runs)
                yield Node(
                    path=path, inode=inode, mode=mode, uid=uid, gid=gid, size=size, mtime=0, target=target, runs=parts
                )


def read_contents(subject: Subject, work: Path) -> Contents:
    """Read an image as far as it is compared.

    Args:
        work: A new folder; it is needed as long as the result is.

    Raises:
        VerifyError: It is refused, or cannot be read.
    """
    work.mkdir()
    require_recorded(subject.file)
    opened = opened_disk(subject.file, work)
    disk = opened.path
    if opened.format != "raw":
        disk = work / "disk.raw"
        write_raw(opened, disk)
    root = read_root(RawDisk(disk), work)
    listing = work / "files.jsonl"
    _write_listing(root, disk, listing)
    tree = Tree(disk, {n.path: n for n in root.nodes if n.path in (STATUS, FACTS) or n.path.startswith(DOCUMENTATION)})
    regular = [node.size for node in root.nodes if stat.S_ISREG(node.mode)]
    return Contents(
        disk=disk,
        listing=listing,
        sizes={"disk": disk.stat().st_size, "files": sum(regular), "number of files": len(regular)},
        boot=outside_digest(disk, root),
        packages=parse_status(tree.read(STATUS, most=MOST_STATUS_BYTES)) if STATUS in tree.nodes else None,
        pins=_pins(subject, tree),
        changelogs=tree,
    )


def _write_listing(root: Root, disk: Path, listing: Path) -> None:
    with listing.open("w") as file, disk.open("rb") as bytes_:
        for node in sorted(root.nodes, key=lambda node: node.path):
            target = ""
            if stat.S_ISLNK(node.mode):
                target = link_target(node, lambda start, end: read_range(bytes_.fileno(), start, end))
            runs = [[run.at, run.disk, run.length] for run in node.runs]
            line = [node.path, node.inode, node.mode, node.uid, node.gid, node.size, target, runs]
            file.write(f"{json.dumps(line)}\n")


def _pins(subject: Subject, tree: Tree) -> dict[str, str] | None:
    """Return pin -> version: as the image tells, with what its manifest adds."""
    told: dict[str, str] = {}
    if FACTS in tree.nodes:
        try:
            told = dict(parse_json(tree.read(FACTS))["versions"])  # type: ignore[index]
            if not all(isinstance(each, str) for pair in told.items() for each in pair):
                raise TypeError
        except (ValueError, LookupError, TypeError) as error:
            raise VerifyError(f"{FACTS} of {subject.name} cannot be read, or gives no versions") from error
    recorded = subject.manifest.pins if subject.manifest else {}
    for name, pin in recorded.items():
        told[name] = f"{pin.version} ({pin.sha256})" if pin.sha256 else pin.version
    return told if FACTS in tree.nodes or recorded else None


def outside_digest(disk: Path, root: Root) -> str:
    """Return a SHA-256 of what a disk holds outside of its root file system: blocks that are not zeros, and where."""
    digest = hashlib.sha256()
    zeros = bytes(BLOCK)
    end = root.start + root.size
    with disk.open("rb") as file:
        for first, last in extents(file.fileno()):
            for start, stop in ((first, min(last, root.start)), (max(first, end), last)):
                for at in range(start - start % BLOCK, stop, BLOCK):
                    block = os.pread(file.fileno(), BLOCK, at)
                    if block != zeros[: len(block)]:
                        digest.update(at.to_bytes(8, "little") + block)
    return digest.hexdigest()


def content_sha256(node: Node, fd: int) -> str:
    """Return the SHA-256 of a regular file; nothing for what is none."""
    if not stat.S_ISREG(node.mode):
        return ""
    digest = hashlib.sha256()
    for part in contents(node, lambda start, end: read_range(fd, start, end)):
        digest.update(part)
    return digest.hexdigest()
