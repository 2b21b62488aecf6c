"""Locks between processes by flock(2), so that a lock dies with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from vmimage.util.errors import HostError


def lock_file(path: Path, how: int) -> IO[str] | None:
    """Open and lock a file, which is made if it is not there; closing it gives the lock back.

    A process that holds an exclusive lock may remove the file. The content of the file is not changed.

    Args:
        how: fcntl's LOCK_EX or LOCK_SH, with LOCK_NB not to wait.

    Returns:
        None when another has it and `how` says not to wait.

    Raises:
        HostError: Something else lies there (a link, say), or the file system has no locks.
    """
    while True:
        file = _opened(path)
        try:
            fcntl.flock(file, how)
            # Another process may have removed it while we waited.
            if os.fstat(file.fileno()).st_ino == path.lstat().st_ino:
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL):
                raise
            raise HostError(
                f"{path.parent} is on a file system without locks ({error.strerror})",
                hint="set VMIMAGE_CACHE, VMIMAGE_DIST and VMIMAGE_STATE, or --disk, to folders on another one "
                "(`invoke doctor`)",
            ) from error
        file.close()


@contextlib.contextmanager
def locked_alone(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold a file that is a lock, made at the start and removed at the end; yields False if another process has it.

    Args:
        on_wait: Called once if another process has it, before its end is waited for. Without it, nothing is waited for.

    Raises:
        HostError: Something else lies there (a link, say), or the file system has no locks.
    """
    file = lock_file(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not file and on_wait:
        on_wait()
        file = lock_file(path, fcntl.LOCK_EX)
    if not file:
        yield False
        return
    with file:
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def _opened(path: Path) -> IO[str]:
    """Open a file as both kinds of locks need it on NFS, where they are locks of its bytes: to read and to write."""
    try:
        # No link is followed and nothing is cut off: in a shared folder, others may have put it there.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _another(path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _another(path)
    return os.fdopen(descriptor, "r+")


def _another(path: Path) -> HostError:
    return HostError(f"{path} is no lock but a link, or of another kind", hint="find out who made it, and remove it")
