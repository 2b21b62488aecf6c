"""What in a cache is ours: a folder that we marked, and in it names of our form. Nothing else is ever removed."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

from vmimage.util.errors import InputError
from vmimage.util.files import is_begun_mark, listed, write_mark
from vmimage.util.links import require_no_link_of_others

TAG = "CACHEDIR.TAG"
SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
"""By which backup programs know caches; source: the Cache Directory Tagging Specification (bford.info/cachedir)."""
OWNER = "# A cache of vmimage: all of it can be removed, and is made again when it is needed."
MARK_SECONDS = 2.0
"""Within which another process that just made the folder has marked it."""
LOOK_SECONDS = 0.1
"""Between two looks whether it has."""
TRIES = 5
"""So often is a folder made that another process removes at the same time."""

_RUN = r"\d{8}-\d{6}-[a-z-]+-\d+"
FORMS = {
    "files": r"[0-9a-f]{64}",
    "partial": r"[0-9a-f]{64}-[0-9a-f]{12}",
    "work": r"[a-z]+-[0-9a-f]{8}",
    "logs": _RUN,
    "kept": _RUN,
}
PRIVATE = ("logs", "work")
"""Folders with what programs said, keys, and sources with passwords."""
KEY = r"[0-9a-f]{16}"
"""Of the results of a stage, in a folder of its name."""
STAGE = r"[a-z]+"
REMEMBERED = ("accelerator.json", "host.json", "seconds-of-checks.json")
"""Files about this host."""


def is_entry(folder: str, name: str) -> bool:
    """Tell whether a name in a folder of the cache is of our form."""
    return bool(re.fullmatch(STAGE, folder) and re.fullmatch(FORMS.get(folder, KEY), name))


def open_root(root: Path) -> None:
    """Make the folder of a cache, and mark it as ours.

    Raises:
        InputError: It holds something and is not marked: other things of the user, perhaps.
        OSError: It cannot be made or read.
    """
    # Work folders hold keys and sources with passwords.
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    end = time.monotonic() + MARK_SECONDS
    while not is_marked(root):
        others = [path.name for path in listed(root) if path.name != TAG or not is_begun_mark(path)]
        if not others or is_of_an_earlier_version(root):
            write_mark(root / TAG, f"{SIGNATURE}\n{OWNER}\n".encode())
            continue
        if time.monotonic() > end:
            shown = ", ".join(others[:3]) + (", …" if others[3:] else "")
            raise InputError(
                f"{root} is no cache of vmimage, and holds other things: {shown}",
                hint="set VMIMAGE_CACHE to a folder that is new or empty, or to a cache of vmimage",
            )
        time.sleep(LOOK_SECONDS)


def make_folder(path: Path) -> None:
    """Make a folder of a cache, if it is not there.

    Raises:
        HostError: It is a link that another user made.
        OSError: It cannot be made.
    """
    for left in reversed(range(TRIES)):
        try:
            path.mkdir(exist_ok=True)
            require_no_link_of_others(path)
            if path.name in PRIVATE:
                # A cache of another user is as they want it.
                with contextlib.suppress(PermissionError):
                    path.chmod(0o700)
            return
        except (FileExistsError, FileNotFoundError):
            # `invoke clean` removes folders that are empty: it was there, and is gone a moment later.
            if not left:
                raise


def is_marked(root: Path) -> bool:
    """Tell whether a folder carries our mark."""
    tag = root / TAG
    if tag.is_symlink() or not tag.is_file():
        return False
    with tag.open(errors="replace") as file:
        return file.read(len(SIGNATURE) + len(OWNER) + 2).splitlines() == [SIGNATURE, OWNER]


def is_of_an_earlier_version(root: Path) -> bool:
    """Tell whether all that a folder holds is of our form: caches were not marked once."""
    for path in listed(root):
        if path.name == TAG and is_begun_mark(path):
            continue
        if path.is_symlink() or not (path.is_dir() or path.name in REMEMBERED):
            return False
        if path.is_dir() and path.name != "locks" and not all(is_entry(path.name, each.name) for each in listed(path)):
            return False
    return (root / "locks").is_dir()
