"""Whether a file is a seed that cloud-init would take: NoCloud finds it by its label, and reads two files in it.

A file that is none starts a machine that nobody can log in to, minutes later. The file is data: little of it is read.
Sources: https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html; ECMA-119, sections 8 and 9.
"""

from __future__ import annotations

import struct
from pathlib import Path

from vmimage.util.files import open_regular

LABEL = "cidata"
"""In small or capital letters."""
NAMES = ("meta-data", "user-data")
SECTOR = 2048
FIRST_DESCRIPTOR = 16
MOST_DESCRIPTORS = 16
PRIMARY, SUPPLEMENTARY, END = 1, 2, 255
LABEL_AT, ROOT_AT = 40, 156
MOST_LIST_BYTES = 64 << 10
FAT_LABELS = ((0x26, 0x2B), (0x42, 0x47))
"""Where the mark of a label is, and the label: of FAT12 and FAT16, of FAT32."""


def require_nocloud(path: Path) -> None:
    """Check that a file is a NoCloud seed.

    Raises:
        ValueError: It is none, with the reason.
        OSError: It cannot be read.
    """
    with open_regular(path, follow=True) as file:
        head = file.read((FIRST_DESCRIPTOR + MOST_DESCRIPTORS) * SECTOR)
        label, lists = _iso(head)
        label = label or _fat(head)
        if label.lower() != LABEL:
            raise ValueError(f"its label is {label!r}, not {LABEL!r}" if label else "it is no ISO, and no FAT disk")
        text = b""
        for at, size in lists:
            file.seek(at)
            text += file.read(min(size, MOST_LIST_BYTES))
    missing = [name for name in NAMES if lists and not any(each in text for each in _spelled(name))]
    if missing:
        raise ValueError(f"it has no {' and no '.join(missing)}")


def _iso(head: bytes) -> tuple[str, list[tuple[int, int]]]:
    """Return the label of an ISO, empty for other files, and where its lists of files at the top are."""
    label, lists = "", []
    for at in range(FIRST_DESCRIPTOR * SECTOR, len(head) - SECTOR + 1, SECTOR):
        kind, magic = head[at], head[at + 1 : at + 6]
        if magic != b"CD001" or kind == END:
            break
        if kind in (PRIMARY, SUPPLEMENTARY):
            block, size = struct.unpack_from("<I4xI", head, at + ROOT_AT + 2)
            lists.append((block * SECTOR, size))
        if kind == PRIMARY:
            label = head[at + LABEL_AT : at + LABEL_AT + 32].decode("latin-1").strip(" \0")
    return label, lists


def _fat(head: bytes) -> str:
    """Return the label of a FAT file system; empty for other files."""
    if head[510:512] == b"\x55\xaa":
        for mark, at in FAT_LABELS:
            if head[mark] == 0x29:  # noqa: PLR2004 - of the format
                return head[at : at + 11].decode("latin-1").strip()
    return ""


def _spelled(name: str) -> tuple[bytes, bytes]:
    """Return a name as Rock Ridge and as Joliet write it."""
    return name.encode(), name.encode("utf-16-be")
