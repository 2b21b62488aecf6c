"""Keeps a directory (the first argument) as the host tells it; what was copied is noted in a file (the second).

Standard input brings frames: a length and JSON, and after a `put` the content, in frames up to an empty one. Standard
output takes answers, lines of JSON. What the machine itself changed is reported, and never overwritten or removed.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import select
import sqlite3
import stat
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

SMALL = 1 << 20  # a larger file is written beside, and takes the old one's place
TEMPORARY = b".vmimage-sync-"
FULL = (errno.ENOSPC, errno.EDQUOT)
LOOK_SECONDS = 10.0
LEISURE = 20  # between two looks for changes of the machine, times what one takes


def answer(**values: object) -> None:
    """Write one answer."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


class Frames:
    """Standard input."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def is_waiting(self, seconds: float) -> bool:
        """Wait until there is input; tells whether there is."""
        return bool(self.rest or select.select([0], [], [], max(0.0, seconds))[0])

    def read(self, size: int) -> bytes:
        """Read so many bytes.

        Raises:
            EOFError: They end before.
        """
        while len(self.rest) < size:
            data = os.read(0, 1 << 18)
            if not data:
                raise EOFError
            self.rest += data
        found, self.rest = bytes(self.rest[:size]), self.rest[size:]
        return found

    def next(self) -> bytes:
        """Read a frame."""
        (size,) = struct.unpack("!I", self.read(4))
        return self.read(size)

    def content(self) -> Iterator[bytes]:
        """Read the content of a file."""
        while data := self.next():
            yield data


def state(path: bytes) -> list[object] | None:
    """Return kind, mode, size, time and target of what is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISREG(found.st_mode):
        return ["file", mode, found.st_size, found.st_mtime_ns, ""]
    if stat.S_ISDIR(found.st_mode):
        return ["dir", mode, 0, 0, ""]
    if stat.S_ISLNK(found.st_mode):
        return ["link", 0, 0, 0, os.fsdecode(os.readlink(path))]
    return ["other", mode, 0, 0, ""]


class Kept:
    """The directory, and the notes of what was copied into it."""

    def __init__(self, top: bytes, notes: str) -> None:
        self.top = top
        self.notes = sqlite3.connect(notes, isolation_level=None)
        self.notes.execute("PRAGMA journal_mode=WAL")
        # Power that fails may take the last notes, but never all: what they do not know is compared.
        self.notes.execute("PRAGMA synchronous=NORMAL")
        self.notes.execute("CREATE TABLE IF NOT EXISTS kept(path BLOB PRIMARY KEY, state TEXT) WITHOUT ROWID")
        self.commit()
        self.unseen, self.told = set[bytes](), set[bytes]()
        for name in os.listdir(top):
            if name.startswith(TEMPORARY):
                os.unlink(os.path.join(top, name))

    def commit(self) -> None:
        """Make the notes outlast this process; on a full disk they wait for the next time."""
        with contextlib.suppress(sqlite3.OperationalError):
            if self.notes.in_transaction:
                self.notes.execute("COMMIT")
            self.notes.execute("BEGIN")

    def all(self) -> list[tuple[bytes, list[object]]]:
        """Return what was copied."""
        return [(path, json.loads(text)) for path, text in self.notes.execute("SELECT path, state FROM kept")]

    def noted(self, path: bytes) -> list[object] | None:
        """Return what was copied to a path."""
        row = self.notes.execute("SELECT state FROM kept WHERE path = ?", (path,)).fetchone()
        return json.loads(row[0]) if row else None

    def note(self, path: bytes, what: list[object] | None) -> None:
        """Note what was copied to a path, or that nothing is."""
        if what:
            self.notes.execute("REPLACE INTO kept VALUES (?, ?)", (path, json.dumps(what)))
        else:
            self.notes.execute("DELETE FROM kept WHERE path = ?", (path,))

    def whole(self, path: bytes) -> bytes:
        return os.path.join(self.top, path)

    def is_within(self, path: bytes) -> bool:
        """Tell whether nothing above a path is anything but a directory: a link of the machine's leads elsewhere."""
        while path := os.path.dirname(path):
            if (state(self.whole(path)) or ["dir"])[0] != "dir":
                return False
        return True

    def is_ours(self, path: bytes, new: list[object]) -> bool:
        """Tell whether what is at a path may be replaced: nothing, what was copied, or what is copied now."""
        found = state(self.whole(path))
        return self.is_within(path) and (found is None or found in (new, self.noted(path)))

    def report(self, path: bytes) -> None:
        self.told.add(path)
        answer(changed=os.fsdecode(path))

    def offered(self, path: bytes, new: list[object]) -> None:
        """Compare with what the host has; want what is another."""
        self.unseen.discard(path)
        found, noted = state(self.whole(path)), self.noted(path)
        if found == new:
            self.note(path, new)
        elif found and found[0] == new[0] == "dir":
            if noted and found == noted:
                os.chmod(self.whole(path), int(str(new[1])))
            self.note(path, new)
        elif found and found[0] == new[0] == "file" and found == noted and found[2:] == new[2:]:
            os.chmod(self.whole(path), int(str(new[1])))
            self.note(path, new)
        elif not self.is_ours(path, new):
            self.report(path)
        elif new[0] == "file":
            answer(want=os.fsdecode(path))
        elif self.clear(path):
            self.make(path, new)

    def clear(self, path: bytes) -> bool:
        """Remove what was copied to a path; tells whether nothing is there any more."""
        found = state(self.whole(path))
        if found and found[0] == "dir":
            for each in sorted((each for each, _ in self.all() if each.startswith(path + b"/")), reverse=True):
                self.gone(each)
            try:
                os.rmdir(self.whole(path))
            except OSError:
                self.report(path)
                return False
        elif found:
            os.unlink(self.whole(path))
        return True

    def make(self, path: bytes, new: list[object]) -> None:
        if new[0] == "link":
            os.symlink(os.fsencode(str(new[4])), self.whole(path))
        else:
            os.mkdir(self.whole(path))
            os.chmod(self.whole(path), int(str(new[1])))
        self.note(path, new)

    def put(self, path: bytes, new: list[object], content: Iterator[bytes]) -> None:
        """Take the content of a file."""
        beside = self.whole(TEMPORARY + b"%d" % os.getpid())
        try:
            data = self.received(content, beside)
            if (len(data) if data is not None else os.path.getsize(beside)) != new[2]:
                return  # it changed while it was read; the host sends it again
            found = state(self.whole(path))
            if not self.is_ours(path, new):
                self.report(path)
            elif found and found[0] != "file" and not self.clear(path):
                pass
            else:
                if data is None or not self.is_written(path, new, data):
                    with open(beside, "wb" if data is not None else "r+b", buffering=0) as file:
                        file.write(data or b"")
                        settle(file.fileno(), new)
                    os.rename(beside, self.whole(path))
                self.note(path, new)
        finally:
            for _ in content:
                pass
            with contextlib.suppress(OSError):
                os.unlink(beside)

    def received(self, content: Iterator[bytes], beside: bytes) -> bytes | None:
        """Return a small content; a large one is in the file `beside`."""
        data = b""
        for part in content:
            data += part
            if len(data) > SMALL:
                with open(beside, "wb") as file:
                    file.write(data)
                    file.writelines(content)
                return None
        return data

    def is_written(self, path: bytes, new: list[object], data: bytes) -> bool:
        """Write a file where it is, for those who wait for its events; tells whether that can be."""
        whole, found = self.whole(path), None
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(whole)
            if found.st_nlink > 1 or not found.st_mode & stat.S_IWUSR:
                return False
        flags = os.O_WRONLY | os.O_NOFOLLOW | (0 if found else os.O_CREAT | os.O_EXCL)
        with open(os.open(whole, flags, 0o600), "wb", buffering=0) as file:
            try:
                # The room first: when there is none, what is there stays as it is.
                if len(data) > (found.st_size if found else 0):
                    os.posix_fallocate(file.fileno(), 0, len(data))
            except OSError:
                if found:
                    os.ftruncate(file.fileno(), found.st_size)
                else:
                    os.unlink(whole)
                raise
            file.write(data)
            file.truncate()
            settle(file.fileno(), new)
        return True

    def gone(self, path: bytes) -> None:
        """Remove what the host has no more, if it is as it was copied."""
        self.unseen.discard(path)
        whole, noted = self.whole(path), self.noted(path)
        found = state(whole) if self.is_within(path) else None
        self.note(path, None)
        if not (found and noted):
            return
        if found[0] == noted[0] == "dir":
            # What the machine made in it stays, and the directory with it.
            with contextlib.suppress(OSError):
                os.rmdir(whole)
        elif found == noted:
            os.unlink(whole)
        else:
            self.report(path)

    def end(self) -> None:
        """Tell what the host did not offer; only it knows whether it has that no more, or leaves it out."""
        for path in self.unseen:
            answer(unknown=os.fsdecode(path), directory=(self.noted(path) or [""])[0] == "dir")
        self.unseen = set()
        self.commit()

    def look(self) -> None:
        """Report what the machine changed, and want again what it removed."""
        for path, noted in self.all():
            found = state(self.whole(path)) if self.is_within(path) else ["other"]
            if found == noted or (found and found[0] == noted[0] == "dir"):
                self.told.discard(path)
            elif found is None:
                answer(want=os.fsdecode(path))
            elif path not in self.told:
                self.report(path)


def settle(handle: int, new: list[object]) -> None:
    """Give a file its mode and time."""
    os.fchmod(handle, int(str(new[1])))
    os.utime(handle, ns=(time.time_ns(), int(str(new[3]))))


def obey(kept: Kept, frames: Frames) -> None:
    """Do what one frame says, or tell why that cannot be."""
    said = json.loads(frames.next())
    try:
        do(said, kept, frames)
    except (OSError, sqlite3.OperationalError) as error:
        why = getattr(error, "strerror", None) or str(error)
        full = getattr(error, "errno", 0) in FULL or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        answer(failed=said.get("path", ""), why=why, full=full)


def do(said: dict[str, Any], kept: Kept, frames: Frames) -> None:
    path, new = os.fsencode(said.get("path", "")), said.get("state", [])
    if said["op"] == "begin":
        kept.unseen = {each for each, _ in kept.all()}
    elif said["op"] == "offer":
        kept.offered(path, new)
    elif said["op"] == "put":
        kept.put(path, new, frames.content())
    elif said["op"] == "gone":
        kept.gone(path)
    elif said["op"] == "forget":
        kept.note(path, None)
    else:
        kept.end()
        answer(done=said["number"])


def serve(kept: Kept, frames: Frames) -> None:
    """Do what the host says until it ends."""
    look_at = time.monotonic() + LOOK_SECONDS
    while True:
        if not frames.is_waiting(0):
            kept.commit()
        if frames.is_waiting(look_at - time.monotonic()):
            obey(kept, frames)
        if time.monotonic() >= look_at:
            began = time.monotonic()
            kept.look()
            look_at = time.monotonic() + max(LOOK_SECONDS, LEISURE * (time.monotonic() - began))


def main() -> None:
    top = os.fsencode(sys.argv[1])
    folder = os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "vmimage-sync")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    notes = os.path.join(folder, hashlib.sha256(os.path.realpath(top)).hexdigest()[:16])
    with open(notes + ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            answer(refused="another `invoke share --sync` copies to it")
            return
        kept = Kept(top, notes)
        try:
            serve(kept, Frames())
        except EOFError:
            kept.commit()


main()
