"""What is ours in dist/: names of our form, in a folder with our mark. Nothing else is ever touched.

Backup programs skip folders with a CACHEDIR.TAG. The mark has another name, since releases are worth a backup.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vmimage.stages.release.version import LATEST, is_left, is_version
from vmimage.util.errors import InputError
from vmimage.util.files import is_begun_mark, listed, read_regular, write_mark

MARK = ".vmimage-releases"
TEXT = b"# Releases of vmimage. Each IMAGE/VERSION folder is one, and is never changed; `invoke clean --releases`.\n"
LOCK = ".lock"
IMAGE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
"""The name of an image, see `Name` of images.yaml."""
SHOWN = 3


def is_marked(dist: Path) -> bool:
    """Tell whether a folder carries our mark."""
    try:
        return read_regular(dist / MARK, len(TEXT)) == TEXT
    except (OSError, ValueError):
        return False


def require_ours(dist: Path) -> None:
    """Check that dist/ is ours, or can become it; nothing is written.

    Raises:
        InputError: It holds other things, and no mark: it is another folder of the user, perhaps.
    """
    if dist.exists() and not dist.is_dir():
        raise InputError(f"{dist} is no folder", hint="set VMIMAGE_DIST to a folder")
    if not dist.exists() or is_marked(dist):
        return
    others = list(_others(dist))
    if others:
        shown = ", ".join(others[:SHOWN]) + (", …" if others[SHOWN:] else "")
        raise InputError(
            f"{dist} is no folder of releases of vmimage, and holds other things: {shown}",
            hint="set VMIMAGE_DIST to a folder that is new or empty, or move these things out of it",
        )


def open_dist(dist: Path) -> None:
    """Make dist/ and mark it as ours.

    Raises:
        InputError: It holds other things, and no mark.
    """
    require_ours(dist)
    dist.mkdir(parents=True, exist_ok=True)
    if not is_marked(dist):
        write_mark(dist / MARK, TEXT)


def _others(dist: Path) -> Iterator[str]:
    """Yield what is not of our form: dist/ was not marked once."""
    for path in listed(dist):
        if path.name == MARK:
            # Another's, unless it is only begun.
            yield from [] if is_begun_mark(path) else [MARK]
        elif path.is_symlink() or not path.is_dir() or not IMAGE.fullmatch(path.name):
            yield path.name
        else:
            others = (each for each in listed(path) if not _is_of_our_form(each) and os.path.lexists(each))
            yield from (f"{path.name}/{each.name}" for each in others)


def _is_of_our_form(path: Path) -> bool:
    whole = is_version(path.name) and path.is_dir() and not path.is_symlink()
    return whole or is_left(path.name) or is_latest(path) or is_lock(path)


def is_latest(path: Path) -> bool:
    """Tell whether this is the link that we make: `latest`, to a version beside it."""
    with contextlib.suppress(OSError):
        return path.name == LATEST and path.is_symlink() and is_version(str(path.readlink()))
    return False


def is_lock(path: Path) -> bool:
    """Tell whether this is our lock, which is an empty file."""
    with contextlib.suppress(OSError):
        return path.name == LOCK and path.is_file() and not path.is_symlink() and not path.stat().st_size
    return False


def image_folders(dist: Path) -> list[Path]:
    """Return the folders of images in dist/; links are none, wherever they lead."""
    found = [path for path in listed(dist) if IMAGE.fullmatch(path.name)]
    return [path for path in found if path.is_dir() and not path.is_symlink()]
