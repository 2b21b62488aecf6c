"""What debsbom reads of an image to know its Debian packages: dpkg's and apt's files, and the packages' licences."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from vmimage.disk.dpkg import MOST_STATUS_BYTES, STATUS, parse_status
from vmimage.disk.ext4 import Tree

STATES = "/var/lib/apt/extended_states"
"""Which packages were asked for, and which came with others."""
COPYRIGHT = re.compile(r"/usr/share/doc/[a-z0-9][a-z0-9+.-]+/copyright")
MOST_COPYRIGHT_BYTES = 4 << 20


def write_package_root(tree: Tree, folder: Path) -> None:
    """Write the files of an image that say which packages it has into a folder, by their paths.

    Raises:
        VerifyError: They cannot be read, or say nonsense.
    """
    # debsbom takes what it finds; this refuses it first.
    parse_status(tree.read(STATUS, most=MOST_STATUS_BYTES))
    paths = {STATUS: MOST_STATUS_BYTES, STATES: MOST_STATUS_BYTES}
    paths |= {path: MOST_COPYRIGHT_BYTES for path in tree.nodes if COPYRIGHT.fullmatch(path)}
    for path, most in paths.items():
        node = tree.nodes.get(path)
        if node and stat.S_ISREG(node.mode):
            to = folder / path.removeprefix("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            # Not every package keeps to UTF-8, and debsbom reads nothing else.
            to.write_text(tree.read(path, most=most).decode(errors="replace"), newline="")
