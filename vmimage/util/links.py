"""Symbolic links in folders that others may write to."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from vmimage.util.errors import HostError


def not_followed(path: str, flags: int) -> int:
    """Open a file, and no link of its name (for `open(…, opener=…)`): in a shared folder, others may have made one."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def require_no_link_of_others(path: Path) -> None:
    """Check that an output folder is not a link of another user; the user's own links are followed.

    Raises:
        HostError: It is such a link.
    """
    with contextlib.suppress(FileNotFoundError):
        state = path.lstat()
        if stat.S_ISLNK(state.st_mode) and state.st_uid not in (0, os.geteuid()):
            raise HostError(
                f"{path} is a link of the user with the number {state.st_uid}, which is not followed",
                hint="find out who made it, and remove it; or set VMIMAGE_CACHE to a folder of your own",
            )
