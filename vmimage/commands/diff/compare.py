"""Which files differ between two images. Pure, but for their bytes."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from vmimage.disk.ext4 import Node
from vmimage.stages.release.changes import change_of

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What is compared of a file; `sha256` of a regular one, `target` of a link."""

    kind: str
    mode: str
    owner: str
    size: int
    sha256: str
    target: str


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """A path that is not the same in both images; None where it is not at all."""

    path: str
    before: FileFacts | None
    after: FileFacts | None

    @property
    def change(self) -> str:
        """In a word."""
        return change_of(self.before, self.after)

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the facts that differ; all of them where one side is None."""
        old, new = (asdict(side) if side else {} for side in (self.before, self.after))
        return tuple(key for key in old | new if old.get(key) != new.get(key))


Sha256 = Callable[[Node], str]


def file_changes(
    before: Iterator[Node], after: Iterator[Node], sha256: tuple[Sha256, Sha256]
) -> Iterator[tuple[FileChange, Node | None, Node | None]]:
    """Yield what differs between two sequences of nodes in order of their paths, one at a time.

    Args:
        sha256: For each side, takes a node and gives the digest of its bytes.
    """
    old, new = next(before, None), next(after, None)
    while old or new:
        a = old if old and (not new or old.path <= new.path) else None
        b = new if new and (not old or new.path <= old.path) else None
        one = a or b
        assert one  # noqa: S101 - one of them comes first
        change = FileChange(
            path=one.path,
            before=file_facts(a, sha256[0](a)) if a else None,
            after=file_facts(b, sha256[1](b)) if b else None,
        )
        if change.differing:
            yield change, a, b
        old = next(before, None) if a else old
        new = next(after, None) if b else new


def file_facts(node: Node, sha256: str) -> FileFacts:
    """Return what is compared of a node."""
    regular = stat.S_ISREG(node.mode)
    return FileFacts(
        kind=KINDS.get(stat.S_IFMT(node.mode), "unknown"),
        mode=f"{stat.S_IMODE(node.mode):04o}",
        owner=f"{node.uid}:{node.gid}",
        size=node.size if regular else 0,
        sha256=sha256,
        target=node.target if stat.S_ISLNK(node.mode) else "",
    )
