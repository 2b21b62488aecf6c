"""Files and folders: digests, flushing to disk, disk usage and removal."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from vmimage.util.errors import HostError, InputError, VmimageError
from vmimage.util.run import Confine, run

FULL_BYTES = 8 << 20
BESIDE = "vmimage-"
"""By which files are known that wait beside another to take its place."""
LEFT_SECONDS = 60.0
REMOVALS = 20
MOST_PATH, MOST_NAME = 4095, 255
"""Bytes of a path, and of a name in it: PATH_MAX and NAME_MAX of Linux."""
MOST_SHOWN = 200
NO_HOME = Path("/dev/null/no-home-directory")


def home() -> Path:
    """Return the user's home directory; a path that can never be one for a user who has none."""
    for found in (os.environ.get("HOME", ""), os.path.expanduser(f"~{_user_name()}")):  # noqa: PTH111 - never raises
        if Path(found).is_absolute():
            return Path(found)
    return NO_HOME


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def expanded(path: str | Path, option: str) -> Path:
    """Return a path with the home that ~ or ~NAME stands for.

    Raises:
        InputError: There is no such user, or it is no path at all.
    """
    text = str(path)
    if not _is_path(text):
        raise InputError(
            f"{option} {text[:MOST_SHOWN]}{'…' * (len(text) > MOST_SHOWN)}: no path",
            hint=f"a path has at most {MOST_PATH} bytes, a name in it {MOST_NAME}, and no NUL",
        )
    if text == "~" or text.startswith("~/"):
        return home() / text[2:]
    found = os.path.expanduser(text)  # noqa: PTH111 - never raises
    if found.startswith("~"):
        raise InputError(f"{option} {path}: there is no such user", hint="write the folder from / on")
    return Path(found)


def _is_path(text: str) -> bool:
    """Tell whether there can be a file of this name; the system would fail in another way with each call."""
    try:
        path = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return b"\0" not in path and len(path) <= MOST_PATH and max(map(len, path.split(b"/"))) <= MOST_NAME


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def open_regular(path: Path, *, follow: bool = False) -> Iterator[BufferedReader]:
    """Open a regular file to read: no device or pipe is waited for.

    Args:
        follow: It may be a symbolic link.

    Raises:
        ValueError: It is another thing than a file.
        OSError: It cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a symbolic link, which is not followed") from None
        if error.errno == errno.ENXIO:
            raise ValueError("no regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("no regular file")
    with os.fdopen(handle, "rb") as file:
        yield file


def read_regular(path: Path, most: int, *, follow: bool = False) -> bytes:
    """Return what a regular file holds, see `open_regular`.

    Args:
        most: Bytes that it may have.

    Raises:
        ValueError: It is another thing than a file, or larger.
        OSError: It cannot be read.
    """
    with open_regular(path, follow=follow) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most} bytes")
    return data


def is_begun_mark(path: Path) -> bool:
    """Tell whether a file that marks a folder as ours is empty: who made it was killed, or is writing it."""
    return not path.is_symlink() and path.is_file() and not path.stat().st_size


def write_mark(path: Path, text: bytes) -> None:
    """Write a file that marks a folder as ours: a new one, or one that is only begun.

    Raises:
        OSError: It cannot be written, or it is a link.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        # Another process may have been first, with the same text.
        if not os.fstat(handle).st_size:
            os.write(handle, text)
    finally:
        os.close(handle)


def listed(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing where it is gone: another process may remove it at any time."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def stamp(path: Path) -> tuple[int, int]:
    """Return the size and the time of change of a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def remove_tree(path: Path) -> None:
    """Remove a file or a folder, also when files in it belong to subordinate users (base stage), however deep it is."""
    for attempt in range(1, REMOVALS + 1):
        if not os.path.lexists(path):
            return
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except (PermissionError, RecursionError):
            run(["rm", "-rf", "--one-file-system", path], confine=Confine.FAKE_ROOT)
        except OSError as error:
            # A program that is about to end, or another process that removes the same, is still at work in it.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or attempt == REMOVALS:
                raise
            time.sleep(0.05)


def place(source: Path, to: Path) -> None:
    """Give a file another name: by a hard link if both are on one file system, else by a copy."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copyfile(source, to)


@contextlib.contextmanager
def written_beside(path: Path, *, mode: int = 0o644, once: bool = False) -> Iterator[Path]:
    """Yield an empty file beside `path`. At the end of the `with` block it replaces `path`, unless there was an error.

    Args:
        mode: Final mode; before that, only the owner may read the file.
        once: It replaces nothing: what is at `path` then stays.

    Raises:
        FileExistsError: With `once`, something is there.
    """
    _sweep_beside(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.{BESIDE}", dir=path.parent)
    beside = Path(name)
    try:
        # Dies with this process; where there are no locks, nothing is swept.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield beside
        beside.chmod(mode)
        sync(beside)
        _take_place(beside, path) if once else beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
        os.close(handle)


def _take_place(beside: Path, path: Path) -> None:
    """Give a file its name, if nothing has this name."""
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        beside.replace(path)


def _sweep_beside(path: Path) -> None:
    """Remove what writers of a file left beside it that were killed."""
    form = re.compile(rf"{re.escape(f'.{path.name}.{BESIDE}')}[a-z0-9_]{{8}}")
    # A folder that cannot be listed can be written to all the same.
    with contextlib.suppress(OSError):
        for each in filter(lambda each: form.fullmatch(each.name), listed(path.parent)):
            with contextlib.suppress(OSError):
                _remove_if_left(each)


def _remove_if_left(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # One that was made a moment ago may not be locked yet.
        if time.time() - os.fstat(handle).st_mtime > LEFT_SECONDS:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder and everything in it, to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(Path(folder, name))
        sync(Path(folder))
    if path.is_file():
        sync(path)


def disk_use(path: Path) -> int:
    """Return the bytes allocated for everything below a folder; what cannot be read does not count."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512  # noqa: PTH118 - called 50,000 times
    return total


def freed_by_removal(path: Path) -> int:
    """Return the bytes that are free again when a file or folder is removed: not of what has another name elsewhere.

    What is removed meanwhile does not count.
    """
    freed = 0
    for each in (path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)):
        with contextlib.suppress(OSError):
            state = each.lstat()
            freed += state.st_blocks * 512 * (stat.S_ISREG(state.st_mode) and state.st_nlink == 1)
    return freed


@contextlib.contextmanager
def fullness_told(folder: Path, hint: str) -> Iterator[None]:
    """Turn whatever a full disk led to into an error that says so.

    Args:
        folder: Where it was written to.
        hint: How to make room.
    """
    try:
        yield
    except (VmimageError, OSError) as error:
        text = str(error)
        full = "No space left on device" in text or getattr(error, "errno", 0) == errno.ENOSPC
        if not full and not (folder.exists() and shutil.disk_usage(folder).free <= FULL_BYTES):
            raise
        raise HostError(f"the disk with {folder} is full; nothing half-made was kept\n{text}", hint=hint) from error


@contextlib.contextmanager
def peak_disk_use(path: Path, *, interval: float = 5.0) -> Iterator[Callable[[], int]]:
    """Watch a folder; the function yielded returns the most bytes seen allocated in it so far."""
    peak = 0
    done = threading.Event()

    def measure() -> int:
        nonlocal peak
        peak = max(peak, disk_use(path))
        return peak

    def watch() -> None:
        while not done.wait(interval):
            measure()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield measure
    finally:
        done.set()
        thread.join()
