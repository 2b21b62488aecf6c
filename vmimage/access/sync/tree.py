"""What of a directory is copied: its files, directories and links, but for what .gitignore and --exclude leave out."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pathspec import GitIgnoreSpec

from vmimage.util.errors import InputError
from vmimage.util.files import open_regular

IGNORE = b".gitignore"
MOST_IGNORE_BYTES = 1 << 20
MOST_ENTRIES = 1_000_000
# What is copied belongs to dev, who has to be able to change it again.
OWNERS_OF_DIRECTORY = 0o700


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file, directory or link of this host.

    Attributes:
        mode: Permissions.
        size: Bytes, of a file.
        modified: Nanoseconds since 1970, of a file.
        target: Of a link.
        stamp: What else changes when it is changed; the machine does not get it.
    """

    kind: str
    mode: int = 0
    size: int = 0
    modified: int = 0
    target: str = ""
    stamp: tuple[int, int] = (0, 0)

    @property
    def state(self) -> list[object]:
        """What the machine compares with what it has: see in_guest/sync.py."""
        return [self.kind, self.mode, self.size, self.modified, self.target]


@dataclass(kw_only=True)
class Seen:
    """What a look through a directory found: path in it -> entry, parents first; and what could not be read."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    unreadable: list[bytes] = field(default_factory=list)


class Tree:
    """A directory, with the rules that leave something out.

    Args:
        exclude: Patterns as in .gitignore, relative to the directory.

    Raises:
        InputError: One of them is no pattern.
    """

    def __init__(self, top: Path, exclude: Sequence[str] = ()) -> None:
        self._top = os.fsencode(top)
        for pattern in exclude:
            if not _is_pattern(pattern):
                hint = "patterns are those of .gitignore: see gitignore(5)"
                raise InputError(f"--exclude {pattern}: no pattern", hint=hint)
        self._excluded = GitIgnoreSpec.from_lines(exclude)
        self._rules: dict[bytes, GitIgnoreSpec | None] = {}

    def whole(self, path: bytes) -> bytes:
        """Return where a path of the directory is on this host."""
        return os.path.join(self._top, path)

    def forget_rules(self) -> None:
        """Read the .gitignore files anew from now on."""
        self._rules.clear()

    def is_left_out(self, path: bytes, *, directory: bool) -> bool:
        """Tell whether a rule leaves out a path, or something that it is in."""
        parts = path.split(b"/")
        above = (b"/".join(parts[:count]) for count in range(1, len(parts)))
        return any(self._is_named(each, directory=True) for each in above) or self._is_named(path, directory=directory)

    def _is_named(self, path: bytes, *, directory: bool) -> bool:
        """Tell whether a rule names a path; the innermost .gitignore that does decides."""
        slash, folder = "/" * directory, path
        if self._excluded.check_file(os.fsdecode(path) + slash).include:
            return True
        while folder:
            folder = os.path.dirname(folder)
            rules = self._rules_of(folder)
            inside = os.fsdecode(path[len(folder) :].lstrip(b"/")) + slash
            found = rules.check_file(inside).include if rules else None
            if found is not None:
                return found
        return False

    def _rules_of(self, folder: bytes) -> GitIgnoreSpec | None:
        if folder not in self._rules:
            path = Path(os.fsdecode(self.whole(os.path.join(folder, IGNORE))))
            self._rules[folder] = None
            with contextlib.suppress(OSError, ValueError), open_regular(path) as file:
                lines = file.read(MOST_IGNORE_BYTES).decode(errors="surrogateescape").splitlines()
                # git passes over a line that is no pattern.
                self._rules[folder] = GitIgnoreSpec.from_lines(filter(_is_pattern, lines))
        return self._rules[folder]

    def entry(self, path: bytes, *, below: bool = False) -> Entry | None:
        """Return what is at a path; nothing for what is not copied: a socket, a device, what a rule leaves out.

        Args:
            below: What it is in is copied, as is known.
        """
        try:
            found = os.lstat(self.whole(path))
            target = os.readlink(self.whole(path)) if stat.S_ISLNK(found.st_mode) else b""
        except OSError:
            return None
        directory = stat.S_ISDIR(found.st_mode)
        if self._is_named(path, directory=directory) if below else self.is_left_out(path, directory=directory):
            return None
        mode, stamp = stat.S_IMODE(found.st_mode) & 0o777, (found.st_ctime_ns, found.st_ino)
        if stat.S_ISREG(found.st_mode):
            return Entry(kind="file", mode=mode, size=found.st_size, modified=found.st_mtime_ns, stamp=stamp)
        if directory:
            # Its own stamp changes with each file in it.
            return Entry(kind="dir", mode=mode | OWNERS_OF_DIRECTORY)
        return Entry(kind="link", target=os.fsdecode(target)) if target else None

    def look(self, start: bytes = b"") -> Seen:
        """Look through the directory, or through what is in one of its directories.

        Raises:
            InputError: There is too much in it.
        """
        seen, folders = Seen(), [start]
        while folders:
            folder = folders.pop()
            try:
                names = sorted(os.listdir(self.whole(folder)))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                seen.unreadable.append(folder)
                continue
            for path in (os.path.join(folder, name) for name in names):
                if entry := self.entry(path, below=True):
                    seen.entries[path] = entry
                    if entry.kind == "dir":
                        folders.append(path)
            if len(seen.entries) > MOST_ENTRIES:
                raise InputError(
                    f"{os.fsdecode(self._top)} holds more than {MOST_ENTRIES} files",
                    hint="leave some out: --exclude PATTERN, or a .gitignore",
                )
        return seen


def changes(before: Mapping[bytes, Entry], after: Mapping[bytes, Entry]) -> tuple[list[bytes], list[bytes]]:
    """Return what is gone, contents first, and what is new or another, parents first; pure.

    What became something else (a file where a directory was) is in the second list only: whoever is told of it removes
    what was there.
    """
    gone = sorted((path for path in before if path not in after), reverse=True)
    return gone, [path for path, entry in after.items() if before.get(path) != entry]


def content(path: bytes) -> Iterator[bytes]:
    """Read a file in parts; nothing when it went meanwhile, or is no file any more."""
    try:
        with open_regular(Path(os.fsdecode(path))) as file:
            while data := file.read(256 << 10):
                yield data
    except (OSError, ValueError):
        return


def _is_pattern(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line])
    except (ValueError, re.error):
        return False
    return True
