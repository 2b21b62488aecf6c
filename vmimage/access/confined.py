"""A directory of the host that the client may use. The client never reaches anything outside of it.

A path is walked component by component from an open directory. Each component is opened without following links, so
neither `..` nor a link leads out. A link that somebody puts in the way between two steps is an error. The client
resolves links itself.

The directory is served by its path: when it is removed and made again, or another file system is mounted on it, the
client sees the new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from vmimage.access.doors import inside, links_in

# Enough to walk through a directory that may be entered but not listed; not every system has it.
WALK = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without setuid and setgid, which would speak for a user of this host.
MODE = 0o1777
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def failed(number: int) -> OSError:
    """Return the exception that Python raises for an error number."""
    return OSError(number, os.strerror(number))


def components(path: bytes) -> list[bytes]:
    """Split a path of the client; the directory itself has no components.

    Raises:
        OSError: It has a component that no file can have, or one that leads up.
    """
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise failed(errno.EACCES)
    if b"\0" in path:
        raise failed(errno.EINVAL)
    return parts


class Folder:
    """File operations inside one directory. Paths are bytes, relative to it even with a slash in front.

    Args:
        root: The directory. It is served by its path (`path`, free of links), whatever is there.
        read_only: Refuse every change.
        doors: Links (path in the directory -> path without links) that are served as their targets. They are fixed
            in advance, since links that the client makes later must not open more of this host. If there are any,
            the client cannot make or move links that lead out.
    """

    def __init__(self, root: Path, *, read_only: bool = False, doors: Mapping[bytes, bytes] | None = None) -> None:
        self.read_only = read_only
        self.path = os.fsencode(root.resolve())
        self._doors = dict(doors or {})
        self._top = os.open("/", WALK)
        self._root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._root)
        os.close(self._top)

    def is_there(self) -> bool:
        """Tell whether the directory can be reached by its path."""
        try:
            with self._walk(self._top, components(self.path), os.O_RDONLY):
                return True
        except OSError:
            return False

    def open(self, path: bytes, flags: int, mode: int = 0o666) -> int:
        """Open a regular file; returns a descriptor."""
        if flags & WRITING:
            self.require_writable()
        with self._place(path, enter=True) as (folder, name):
            # Before it is opened, since opening a device may already do something to it.
            with contextlib.suppress(FileNotFoundError):
                _require_regular(os.lstat(name, dir_fd=folder))
            flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            descriptor = os.open(name, flags, mode & 0o777, dir_fd=folder)
        try:
            _require_regular(os.fstat(descriptor))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def lstat(self, path: bytes) -> os.stat_result:
        """Examine a file; a link is not followed."""
        with self._place(path, enter=True) as (folder, name):
            return os.lstat(name, dir_fd=folder)

    def entries(self, path: bytes) -> Generator[tuple[bytes, os.stat_result]]:
        """Yield the names in a directory; it stays open until the last one, or until the generator is closed.

        Only the current name is held in memory, however large the directory is.
        """
        listing = self._entries(components(path))
        # Opens it: what goes wrong then is told now.
        next(listing)
        return listing

    def _entries(self, parts: list[bytes]) -> Generator[tuple[bytes, os.stat_result]]:
        with self._directory(parts, os.O_RDONLY) as folder, os.scandir(folder) as entries:
            yield b".", os.fstat(folder)
            for entry in entries:
                name = os.fsencode(entry.name)
                inner = b"/".join([*parts, name])
                with contextlib.suppress(FileNotFoundError):
                    yield name, self.lstat(inner) if inner in self._doors else entry.stat(follow_symlinks=False)

    def readlink(self, path: bytes) -> bytes:
        """Return where a link leads, as it is written in it."""
        with self._place(path, enter=True) as (folder, name):
            return os.readlink(name, dir_fd=folder)

    def statvfs(self, path: bytes) -> os.statvfs_result:
        """Examine the file system."""
        with self._place(path, enter=True) as (folder, _):
            return os.statvfs(folder)

    def mkdir(self, path: bytes, mode: int) -> None:
        """Make a directory."""
        self.require_writable()
        with self._place(path) as (folder, name):
            os.mkdir(name, mode & 0o777, dir_fd=folder)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory."""
        self.require_writable()
        with self._place(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def remove(self, path: bytes) -> None:
        """Remove a file or a link."""
        self.require_writable()
        with self._place(path) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def rename(self, old: bytes, new: bytes, *, replace: bool) -> None:
        """Rename, atomically; only `replace` allows it to replace an existing file."""
        self.require_writable()
        with self._place(old) as (from_folder, from_name), self._place(new) as (to_folder, to_name):
            if not replace:
                with contextlib.suppress(FileNotFoundError):
                    os.lstat(to_name, dir_fd=to_folder)
                    raise failed(errno.EEXIST)
            self._require_inward_move(from_folder, from_name, old, new)
            os.rename(from_name, to_name, src_dir_fd=from_folder, dst_dir_fd=to_folder)

    def link(self, old: bytes, new: bytes) -> None:
        """Make a hard link."""
        self.require_writable()
        with self._place(old) as (from_folder, from_name), self._place(new) as (to_folder, to_name):
            self._require_inward_move(from_folder, from_name, old, new)
            os.link(from_name, to_name, src_dir_fd=from_folder, dst_dir_fd=to_folder, follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        """Make a link, which is never followed here. Without doors it may lead anywhere."""
        self.require_writable()
        self._require_inward(target, path)
        with self._place(path) as (folder, name):
            os.symlink(target, name, dir_fd=folder)

    def chmod(self, path: bytes, mode: int) -> None:
        """Set the permissions; those of the shared directory itself cannot be changed."""
        self.require_writable()
        self.require_below(path)
        with self._place(path, enter=True) as (folder, name):
            if os.chmod in os.supports_follow_symlinks:
                os.chmod(name, mode & MODE, dir_fd=folder, follow_symlinks=False)
                return
            # Linux could not change a mode without following links for long: go by a descriptor of the file itself.
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                    raise failed(errno.EOPNOTSUPP)
                os.chmod(f"/proc/self/fd/{descriptor}", mode & MODE)  # noqa: PTH101
            finally:
                os.close(descriptor)

    def utime(self, path: bytes, times: tuple[int, int]) -> None:
        """Set the times of access and change, in seconds."""
        self.require_writable()
        with self._place(path, enter=True) as (folder, name):
            os.utime(name, times, dir_fd=folder, follow_symlinks=False)

    def require_writable(self) -> None:
        """Refuse a change of a read-only directory."""
        if self.read_only:
            raise failed(errno.EROFS)

    def require_below(self, path: bytes) -> None:
        """Refuse the directory itself, and what a door leads to."""
        parts = components(path)
        if not parts or self._behind(parts):
            raise failed(errno.EPERM)

    def _require_inward_move(self, folder: int, name: bytes, old: bytes, new: bytes) -> None:
        """Refuse to put a link where it leads out, also with the directory that it is in."""
        if not self._doors:
            return
        mode = os.lstat(name, dir_fd=folder).st_mode
        if stat.S_ISLNK(mode):
            self._require_inward(os.readlink(name, dir_fd=folder), new)
        if stat.S_ISDIR(mode):
            top, rest = self._at(components(old))
            there = os.path.join(top, *rest)  # noqa: PTH118 - bytes
            for link in links_in(there, whole=True):
                self._require_inward(os.readlink(link), os.path.join(new, os.path.relpath(link, there)))  # noqa: PTH115, PTH118

    def _require_inward(self, target: bytes, path: bytes) -> None:
        """Refuse a link that leads out of the directory, or out of what the door before it leads to."""
        if not self._doors:
            return
        top, rest = self._at(components(path))
        written = os.path.join(top, *rest[:-1], target)  # noqa: PTH118 - bytes
        if not inside(top, os.path.normpath(written)) or not inside(top, os.path.realpath(written)):
            raise failed(errno.EACCES)

    def _at(self, parts: list[bytes]) -> tuple[bytes, list[bytes]]:
        """Return the place of a path on this host: the directory or what a door leads to, and the way from there."""
        for length in range(len(parts) - 1, 0, -1):
            if behind := self._behind(parts[:length]):
                return behind, parts[length:]
        return self.path, parts

    def _renewed(self) -> int:
        """Return the directory, opened again if another one is there now."""
        with contextlib.suppress(OSError):
            there, ours = os.lstat(self.path), os.fstat(self._root)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return self._root
        # By its path without following a link: whoever may write above it must not lead us elsewhere.
        with self._walk(self._top, components(self.path), os.O_RDONLY) as folder:
            renewed = os.dup(folder)
        os.close(self._root)
        self._root = renewed
        return renewed

    @contextlib.contextmanager
    def _place(self, path: bytes, *, enter: bool = False) -> Iterator[tuple[int, bytes]]:
        """Open the directory that holds a path; yields it, and the name in it.

        Args:
            enter: A door stands for what is behind it, not for the link.
        """
        parts = components(path)
        if enter and (behind := self._behind(parts)):
            with self._walk(self._top, components(behind)[:-1], WALK) as folder:
                yield folder, os.path.basename(behind)  # noqa: PTH119 - bytes
        elif parts:
            with self._directory(parts[:-1], WALK) as folder:
                yield folder, parts[-1]
        else:
            yield self._renewed(), b"."

    @contextlib.contextmanager
    def _directory(self, parts: list[bytes], flags: int) -> Iterator[int]:
        """Open a directory, through the last door on the way to it."""
        for length in range(len(parts) if self._doors else 0, 0, -1):
            if behind := self._behind(parts[:length]):
                with self._walk(self._top, [*components(behind), *parts[length:]], flags) as folder:
                    yield folder
                return
        with self._walk(self._renewed(), parts, flags) as folder:
            yield folder

    def _behind(self, parts: list[bytes]) -> bytes | None:
        """Return where a door leads; it is one as long as a link is there and what it led to exists."""
        behind = self._doors.get(b"/".join(parts))
        if behind is None:
            return None
        try:
            with (
                self._walk(self._renewed(), parts[:-1], WALK) as folder,
                self._walk(self._top, components(behind)[:-1], WALK) as target,
            ):
                there = os.lstat(os.path.basename(behind), dir_fd=target)  # noqa: PTH119 - bytes
                is_link = stat.S_ISLNK(os.lstat(parts[-1], dir_fd=folder).st_mode)
        except OSError:
            return None
        return behind if is_link and not stat.S_ISLNK(there.st_mode) else None

    @staticmethod
    @contextlib.contextmanager
    def _walk(start: int, parts: list[bytes], flags: int) -> Iterator[int]:
        current = os.open(b".", WALK if parts else flags | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=start)
        try:
            for number, part in enumerate(parts, 1):
                following = WALK if number < len(parts) else flags | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                current, left = os.open(part, following, dir_fd=current), current
                os.close(left)
            yield current
        finally:
            os.close(current)


def _require_regular(found: os.stat_result) -> None:
    """Refuse what is no plain file: a pipe would block the service, a device does things."""
    if stat.S_ISLNK(found.st_mode):
        raise failed(errno.ELOOP)
    if stat.S_ISDIR(found.st_mode):
        raise failed(errno.EISDIR)
    if not stat.S_ISREG(found.st_mode):
        raise failed(errno.EACCES)
