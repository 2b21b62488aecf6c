"""Which directories this process watches: its watches of inotify, as the system lists them.

Source: https://docs.kernel.org/filesystems/proc.html, on fdinfo of inotify.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

WATCH = re.compile(rb"^inotify wd:[0-9a-f]+ ino:([0-9a-f]+)", re.MULTILINE)


def unwatched(root: str, folders: Iterable[bytes]) -> list[bytes]:
    """Return those directories that nobody watches, of those that are there.

    Returns nothing where the system does not tell, or lists other numbers than a directory has.
    """
    watched = _numbers()
    if _number(root, follow=True) not in watched:
        return []
    return [each for each in folders if (found := _number(each)) and found not in watched]


def _number(folder: str | bytes, *, follow: bool = False) -> int:
    with contextlib.suppress(OSError):
        return os.stat(folder, follow_symlinks=follow).st_ino  # noqa: PTH116 - of bytes, too
    return 0


def _numbers() -> set[int]:
    with contextlib.suppress(OSError):
        return {int(found, 16) for path in _informations() for found in WATCH.findall(path.read_bytes())}
    return set()


def _informations() -> Iterator[Path]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            if os.readlink(descriptor).endswith("inotify"):  # noqa: PTH115
                yield Path("/proc/self/fdinfo") / descriptor.name
