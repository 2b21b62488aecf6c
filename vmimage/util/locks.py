"""Locks between processes by flock(2), so that a lock dies with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


def lock_file(path: Path, how: int) -> IO[str] | None:
    """Open and lock a file, which is made if it is not there; closing it gives the lock back.

    Whoever holds it alone may remove it.

    Args:
        how: fcntl's LOCK_EX or LOCK_SH, with LOCK_NB not to wait.

    Returns:
        None when another has it and `how` says not to wait.
    """
    while True:
        file = path.open("w")
        try:
            fcntl.flock(file, how)
            # Another process may have removed it while we waited.
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()
