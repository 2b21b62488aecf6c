"""What debsbom reads of an image to know its Debian packages: dpkg's and apt's files, and the packages' licences."""

from __future__ import annotations

import logging
import re
import stat
from pathlib import Path

from vmimage.disk.dpkg import MOST_STATUS_BYTES, STATUS, parse_status
from vmimage.disk.ext4 import Tree

log = logging.getLogger(__name__)

STATES = "/var/lib/apt/extended_states"
"""Which packages were asked for, and which came with others."""
COPYRIGHT = re.compile(r"/usr/share/doc/[a-z0-9][a-z0-9+.-]+/copyright")
MOST_COPYRIGHT_BYTES = 4 << 20
MOST_PARAGRAPHS = 5000
"""Of a copyright file; Debian's longest have some hundred. What reads them takes a second for so many."""
PARAGRAPH = re.compile(rb"^[ \t]*\r?$", re.MULTILINE)


def write_package_root(tree: Tree, folder: Path) -> None:
    """Write the files of an image that say which packages it has into a folder, by their paths.

    Raises:
        VerifyError: They cannot be read, or say nonsense.
    """
    # debsbom takes what it finds; this refuses it first.
    parse_status(tree.read(STATUS, most=MOST_STATUS_BYTES))
    copyrights = [path for path in tree.nodes if COPYRIGHT.fullmatch(path)]
    for path in (STATUS, STATES, *copyrights):
        node = tree.nodes.get(path)
        if node and stat.S_ISREG(node.mode):
            data = _copyright(tree, path) if path in copyrights else tree.read(path, most=MOST_STATUS_BYTES)
            to = folder / path.removeprefix("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            # Not every package keeps to UTF-8, and debsbom reads nothing else.
            to.write_text(data.decode(errors="replace"), newline="")


def _copyright(tree: Tree, path: str) -> bytes:
    """Return a copyright file; an empty one instead of one that is longer than any of Debian's."""
    if tree.nodes[path].size <= MOST_COPYRIGHT_BYTES:
        data = tree.read(path, most=MOST_COPYRIGHT_BYTES)
        if len(PARAGRAPH.findall(data)) <= MOST_PARAGRAPHS:
            return data
    most = f"{MOST_COPYRIGHT_BYTES >> 20} MiB or {MOST_PARAGRAPHS} paragraphs"
    log.warning("%s has more than %s: its package is listed without licences", path, most)
    return b""
