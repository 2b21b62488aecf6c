"""Tell programs in the guest of files that change on the host.

The kernel of the guest knows only what is done through its own mount, so each changed file is touched there in a way
that does nothing to it: it is given to the owner that it has, and opened for writing and closed. That gives IN_ATTRIB
and IN_CLOSE_WRITE, on the file and on its directory. Setting its mode or times again would do as well for the guest,
but undo a change made here in the same moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import paramiko
from watchfiles import Change, DefaultFilter, watch

from vmimage.access.inotify import unwatched
from vmimage.util.run import tail
from vmimage.vm.limits import COMMAND_SECONDS, SHOWN_LINES

# The guest's own writes come back as changes on the host, this much later at most.
ECHO_SECONDS = 1.0
DEBOUNCE_MILLISECONDS = 100
# How often it is looked whether the directory is still the one that is watched.
LOOK_MILLISECONDS = 500
# Before it is watched anew, and between two looks where the system has no watches left.
AGAIN_SECONDS = 1.0
# Between two looks through all of a directory, times what one takes.
LEISURE = 5
# A machine that is shut down may take so long from the end of its first program to that of its ssh server.
GOING_SECONDS = 10.0
REMEMBERED = 4096
EXAMINED = 100_000
SHOWN = 5

TOUCH = (Path(__file__).parent / "in_guest" / "touch.py").read_text()


def touch_command(target: str) -> str:
    """Return the command that touches in the guest what it reads the names of."""
    return f"exec python3 -c {shlex.quote(TOUCH)} {shlex.quote(target)}"


class _Below(DefaultFilter):
    """Filter by the path inside the directory, since the directory itself may lie below a `.git`.

    Args:
        everything: Nothing is passed over.
    """

    def __init__(self, root: str, *, everything: bool = False) -> None:
        super().__init__()
        self._root, self._everything = root, everything
        self._names = re.compile("|".join(self.ignore_entity_patterns))

    def __call__(self, change: Change, path: str) -> bool:
        """Tell whether a change is told."""
        return self._everything or super().__call__(change, os.path.relpath(path, self._root))

    def takes(self, name: str) -> bool:
        """Tell whether a file or directory counts, by its own name."""
        return self._everything or (name not in self.ignore_dirs and not self._names.search(name))


@dataclass(kw_only=True)
class Found:
    """What a look through a directory finds.

    Attributes:
        folders: Those that were looked into, by their whole paths.
        changed: Paths in the directory.
        unreadable: Directories that are not looked into.
    """

    folders: list[bytes] = field(default_factory=list)
    changed: list[bytes] = field(default_factory=list)
    unreadable: list[bytes] = field(default_factory=list)


def look_through(root: Path, since: float, *, everything: bool = False) -> Found:
    """Find what changed since a time (of time.time), among the first 100,000 names."""
    top, found, examined = os.fsencode(root), Found(), 0
    interesting = _Below(str(root), everything=everything).takes
    folders = [top]
    while folders and examined < EXAMINED:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except PermissionError:
            found.unreadable.append(os.path.relpath(folder, top))
            continue
        except OSError:  # it went meanwhile
            continue
        found.folders.append(folder)
        for entry in entries:
            examined += 1
            with contextlib.suppress(OSError):
                state = entry.stat(follow_symlinks=False)
                if not interesting(os.fsdecode(entry.name)):
                    continue
                if state.st_ctime >= since and len(found.changed) < REMEMBERED:
                    found.changed.append(os.path.relpath(entry.path, top))
                if stat.S_ISDIR(state.st_mode):
                    folders.append(entry.path)
    return found


class Notifier:
    """Watches a directory.

    Args:
        say: Told of what is not watched, each time once.
        everything: What is in .git, node_modules and the like counts, too.
    """

    def __init__(
        self, source: Path, say: Callable[[str], object] = lambda _: None, *, everything: bool = False
    ) -> None:
        self._source = source
        self._say = say
        self._everything = everything
        self._said: set[str] = set()
        self._written: dict[bytes, float] = {}
        self._polls = self._passes_over = False
        # Directories that a watch is still to be seen of -> how often it was looked for; and since when.
        self._awaited: dict[bytes, int] = {}
        self._awaited_since = self._look_at = 0.0

    def by_guest(self, path: bytes) -> None:
        """Remember that a change came from the guest, where everybody knows of it."""
        if len(self._written) >= REMEMBERED:
            self._written.clear()
        self._written[path.strip(b"/")] = time.monotonic()

    @contextlib.contextmanager
    def touching(self, channel: paramiko.Channel) -> Iterator[None]:
        """Watch for the length of a `with` block.

        Args:
            channel: Runs the command that touches.
        """
        stop = threading.Event()
        channel.settimeout(COMMAND_SECONDS)

        def tell(names: set[bytes]) -> None:
            text = b"".join(name + b"\0" for name in sorted(names) if not self._echo(name))
            if text:
                channel.sendall(text)

        def work() -> None:
            try:
                self.follow(tell, stop, channel.exit_status_ready)
                said = _errors(channel)
            except (OSError, EOFError, paramiko.SSHException) as error:
                said = str(error)
            # When the session is gone, others notice it too, and begin anew. A machine that is shut down ends its
            # programs first.
            session = channel.get_transport()
            if not stop.wait(GOING_SECONDS) and session.is_active():
                ended = f"what tells them there has ended{tail(said, SHOWN_LINES)}"
                self._once(f"changes are not told to the machine any more: {ended}")

        thread = threading.Thread(target=work, name="notify", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            channel.close()
            thread.join()

    def follow(
        self, tell: Callable[[set[bytes]], None], stop: threading.Event, ended: Callable[[], bool] = lambda: False
    ) -> None:
        """Watch until told to stop, whatever becomes of the directory, and tell what changed.

        Args:
            ended: Returns whether the command in the guest has ended.
        """
        since = time.time() - AGAIN_SECONDS
        found = self._look_through(self._source, float("inf"))
        self._await(found.folders)
        unreadable = sorted(map(os.fsdecode, found.unreadable))
        if unreadable:
            more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
            self._once(f"not watched, since they cannot be read: {', '.join(unreadable[:SHOWN])}{more}")
        while not (stop.is_set() or ended()):
            try:
                with _opened(self._source) as (root, is_the_same):
                    # What changed while nobody watched, names that the watcher does not take among it.
                    missed = since
                    for names in self._changes(root, stop):
                        tell(names | set(self._look_through(self._source, missed).changed if missed >= 0 else ()))
                        missed, since = -1.0, time.time() - AGAIN_SECONDS
                        if ended():
                            return
                        if not is_the_same():
                            # All of it is new, however old.
                            since = 0.0
                            break
                    since = self._overlooked(since)
            except FileNotFoundError:
                since = 0.0  # it is gone, which `invoke share` says
            except (RuntimeError, ValueError) as error:
                self._unwatched(str(error))
                # It may go wrong each time, as with directories whose names are no UTF-8: then this is how it is told.
                began = time.time()
                tell(set(self._look_through(self._source, since).changed))
                since = began - AGAIN_SECONDS
                stop.wait(LEISURE * (time.time() - began))
            stop.wait(AGAIN_SECONDS)

    def _look_through(self, folder: Path, since: float) -> Found:
        return look_through(folder, since, everything=self._everything)

    def _changes(self, root: str, stop: threading.Event) -> Iterator[set[bytes]]:
        """Yield what changes, and now and then nothing."""
        while True:
            try:
                for changes in watch(
                    root,
                    watch_filter=_Below(root, everything=self._everything),
                    debounce=DEBOUNCE_MILLISECONDS,
                    stop_event=stop,
                    rust_timeout=LOOK_MILLISECONDS,
                    yield_on_timeout=True,
                    raise_interrupt=False,
                    ignore_permission_denied=self._passes_over,
                    force_polling=self._polls,
                    poll_delay_ms=int(AGAIN_SECONDS * 1000),
                ):
                    names = {os.fsencode(os.path.relpath(path, root)) for _, path in changes}
                    self._require_watches(root)
                    made = {os.path.relpath(path, root) for change, path in changes if change is Change.added}
                    yield names | self._inside(made)
                return
            except FileNotFoundError:
                raise
            except OSError as error:
                if isinstance(error, PermissionError) and not self._passes_over:
                    self._passes_over = True
                    continue
                if self._polls:
                    raise ValueError(str(error)) from error
                self._polls = True
                self._once(
                    f"the system has no watches left, so the files are looked at once a second: {error}; "
                    "`sysctl fs.inotify.max_user_watches fs.inotify.max_user_instances` shows how many there are"
                )
                return

    def _await(self, folders: Iterable[bytes]) -> None:
        """Note directories that are to be watched from now on."""
        if not self._awaited:
            self._awaited_since = time.time()
            self._look_at = time.monotonic() + AGAIN_SECONDS
        self._awaited |= dict.fromkeys(islice(folders, EXAMINED - len(self._awaited)), 0)

    def _require_watches(self, root: str) -> None:
        """Look whether new directories are watched: the watcher does not tell that it has no watches left for them.

        Raises:
            OSError: One is not, at the second look.
        """
        if self._polls or not self._awaited or time.monotonic() < self._look_at:
            return
        self._awaited = {each: self._awaited[each] + 1 for each in unwatched(root, self._awaited)}
        self._look_at = time.monotonic() + AGAIN_SECONDS
        if any(looks > 1 for looks in self._awaited.values()):
            raise OSError(errno.ENOSPC, "fewer watches than directories")

    def _overlooked(self, since: float) -> float:
        """Return since when changes are to be told: earlier, if there are directories that nobody watched."""
        if self._polls and self._awaited:
            since = min(since, self._awaited_since - AGAIN_SECONDS)
            self._awaited.clear()
        return since

    def _inside(self, made: set[str]) -> set[bytes]:
        """Return what is in new directories: it may have been there before they were watched."""
        names = set()
        for name in made:
            folder = self._source / name
            if folder.is_dir() and not folder.is_symlink():
                found = self._look_through(folder, 0)
                self._await(found.folders)
                names |= {os.path.join(os.fsencode(name), each) for each in found.changed}  # noqa: PTH118
        return names

    def _unwatched(self, why: str) -> None:
        if "decode" in why:
            why = "names that are no UTF-8 are told a second later"
        self._once(why)

    def _once(self, text: str) -> None:
        if text not in self._said and len(self._said) < REMEMBERED:
            self._said.add(text)
            self._say(f"{'--sync' if self._everything else '--notify'}: {text}")

    def _echo(self, name: bytes) -> bool:
        return time.monotonic() - self._written.get(name, -ECHO_SECONDS) < ECHO_SECONDS


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Hold a directory; yields a name to watch it by, and what tells whether its path still leads to it.

    While it is held, its number is given to no other.

    Raises:
        FileNotFoundError: There is no directory, or none that can be read.
    """
    try:
        handle = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise FileNotFoundError(error.errno, error.strerror) from error
    try:
        held = os.fstat(handle)

        def is_the_same() -> bool:
            try:
                found = source.lstat()
            except OSError:
                return False
            return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

        try:
            str(source).encode()
            name = str(source)
        except UnicodeEncodeError:
            name = f"/proc/self/fd/{handle}"
        yield name, is_the_same
    finally:
        os.close(handle)


def _errors(channel: paramiko.Channel) -> str:
    """Return what the command says of its end."""
    return channel.recv_stderr(4096).decode(errors="replace") if channel.recv_stderr_ready() else ""
