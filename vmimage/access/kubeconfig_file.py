"""The user's own kubeconfig: read, locked against kubectl, and replaced whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import cast

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vmimage.access.kubeconfig import SECTIONS, Config
from vmimage.util.errors import HostError, InputError
from vmimage.util.files import expanded, listed, sync, written_beside
from vmimage.util.yaml_bounds import require_bounded

KEPT_BACKUPS = 5
# Hundreds of clusters; what is larger takes longer to read and write than somebody waits.
LIMIT_BYTES = 4 << 20
NODES = 20_000
# kubectl has the lock for much less.
LOCK_SECONDS = 2.0
LOOK_SECONDS = 0.05
"""Between two looks whether it is free."""
LOCK_BYTES = 256
OURS = b"vmimage "
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
BY_HAND = "nothing was changed; `invoke kubeconfig --show` writes the machine's own to standard output"


def chosen_file(given: str | None, environment: Mapping[str, str], home: Path) -> Path:
    """Return the file that kubectl would write to; it may be a link.

    Raises:
        InputError: The path exists, and is not a file.
    """
    named = [Path(part) for part in environment.get("KUBECONFIG", "").split(os.pathsep) if part]
    # Of several, kubectl takes the first that is there, else the last.
    chosen = next((path for path in named if path.exists()), named[-1]) if named else home / ".kube" / "config"
    path = (expanded(given, "--kubeconfig") if given else chosen).absolute()
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file", hint="name another with --kubeconfig, or in KUBECONFIG")
    return path


def read(path: Path) -> Config:
    """Read a kubeconfig; an absent or empty one is empty.

    Raises:
        InputError: It is not a kubeconfig, or larger than people's are; the line is named where there is one.
    """
    try:
        text = _text(path)
        require_bounded(text, nodes=NODES)
        data = _round_trip().load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="nothing was changed") from error
    except (yaml.YAMLError, YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {error}", hint="correct it; nothing was changed") from error
    # Values that are not of the type that they name, such as `!!int x`, are ValueErrors too.
    except ValueError as error:
        raise InputError(f"{path} is not YAML that kubectl takes: {error}", hint=BY_HAND) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path} is not a mapping", hint="nothing was changed")
    for section, inner in SECTIONS.items():
        if not _is_section(data.get(section), inner):
            raise InputError(f"{path}: {section} is not a list of name and {inner}", hint="nothing was changed")
    return cast("Config", data)


def text_of(config: Config) -> str:
    """Return a kubeconfig as YAML; one that was read keeps its comments, quotes and order."""
    text = io.StringIO()
    _round_trip().dump(config, text)
    return text.getvalue()


def write(path: Path, config: Config) -> Path | None:
    """Replace a kubeconfig, whole and readable by its user only; returns the backup of the old one, if any.

    A link stays a link. The file keeps its mode, its owner and its line endings.
    """
    # Not Path.resolve, which fails where links go round in a circle.
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text, backup, mode = text_of(config), None, 0o600
    if path.exists():
        found, old = path.stat(), path.read_bytes()
        mode = found.st_mode & 0o777
        backup = _backed_up(path, old, mode)
        if b"\r\n" in old:
            text = text.replace("\n", "\r\n")
    with written_beside(path, mode=mode) as beside:
        beside.write_bytes(text.encode())
        if backup and os.geteuid() == 0:
            os.chown(beside, found.st_uid, found.st_gid)
    sync(path.parent)
    return backup


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the same lock as kubectl; for a link, also the lock of the file behind it.

    Each `invoke kubeconfig` holds flock(2) on its lock. So the lock of one that was killed can be taken over.

    Raises:
        HostError: Another program holds the lock.
    """
    with contextlib.ExitStack() as held:
        for each in dict.fromkeys((str(path), os.path.realpath(path))):
            held.enter_context(_locked(Path(f"{each}.lock")))
        yield


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[None]:
    end = time.monotonic() + LOCK_SECONDS
    handle = -1
    try:
        lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        while (handle := _taken(lock)) < 0:
            if time.monotonic() > end:
                raise _held(lock)
            time.sleep(LOOK_SECONDS)
        yield
    except OSError as error:
        if handle >= 0:
            raise
        raise HostError(f"{lock} cannot be made: {error}", hint="kubectl needs it as well: see its folder") from error
    finally:
        if handle >= 0:
            # Before it is let go: nobody else can have taken it over until then.
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == lock.stat().st_ino:
                    lock.unlink()
            os.close(handle)


def _taken(lock: Path) -> int:
    """Make the lock, or take over one of ours whose owner is dead; returns what holds it, or -1."""
    with _own_lock(lock) as (beside, handle):
        try:
            os.link(beside, lock)
        except FileExistsError:
            return _taken_over(lock)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            return _made(lock)
        return os.dup(handle)


def _made(lock: Path) -> int:
    """Make the lock where files have one name only; between its making and its text it looks like kubectl's."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _taken_over(lock)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(handle, OURS + b"%d\n" % os.getpid())
    return handle


@contextlib.contextmanager
def _own_lock(lock: Path) -> Iterator[tuple[Path, int]]:
    """Yield a file beside a lock that says whose it is and is held, and its descriptor; both end with the block."""
    _sweep_own_locks(lock)
    # A name of its own: threads are takers too, and processes in two containers may have one number.
    handle, name = tempfile.mkstemp(prefix=f".{lock.name}.", dir=lock.parent)
    beside = Path(name)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(handle, OURS + b"%d\n" % os.getpid())
        yield beside, handle
    finally:
        beside.unlink(missing_ok=True)
        os.close(handle)


def _sweep_own_locks(lock: Path) -> None:
    """Remove those of processes that were killed: each is locked before it says whose it is."""
    form = re.compile(rf"{re.escape(f'.{lock.name}.')}(?:[0-9]{{1,10}}|[a-z0-9_]{{8}})")
    # A folder that cannot be listed can be written to all the same.
    with contextlib.suppress(OSError):
        for each in listed(lock.parent):
            if form.fullmatch(each.name) and (handle := _taken_over(each)) >= 0:
                each.unlink(missing_ok=True)
                os.close(handle)


def _taken_over(lock: Path) -> int:
    try:
        handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1
    with contextlib.suppress(OSError):
        if os.read(handle, LOCK_BYTES).startswith(OURS):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another may have taken it over, and given it back, in the meantime.
            if os.fstat(handle).st_ino == lock.stat().st_ino:
                return handle
    os.close(handle)
    return -1


def _held(lock: Path) -> HostError:
    since = said = ""
    with contextlib.suppress(OSError):
        since = f", since {datetime.fromtimestamp(lock.lstat().st_mtime).astimezone():%Y-%m-%d %H:%M:%S}"
        if stat.S_ISREG(lock.lstat().st_mode):
            with lock.open("rb") as file:
                said = ": another `invoke kubeconfig`" if file.read(LOCK_BYTES).startswith(OURS) else ""
    hint = f"kubectl holds it for less than a second; if none runs, one was killed: rm '{lock}'"
    return HostError(f"{lock} is held by another program{said}{since}", hint="wait for its end" if said else hint)


def _text(path: Path) -> str:
    """Return the text of a file; none if it is not there.

    Raises:
        OSError, UnicodeDecodeError, InputError: It cannot be read, or is larger than people's are.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    with os.fdopen(handle, "rb") as file:
        data = file.read(LIMIT_BYTES + 1)
    if len(data) > LIMIT_BYTES:
        raise InputError(f"{path} is larger than {LIMIT_BYTES >> 20} MiB", hint=BY_HAND)
    return data.decode().replace("\r\n", "\n")


def _is_section(entries: object, inner: str) -> bool:
    return entries is None or (
        isinstance(entries, list)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get(inner, {}), dict | None)
            for entry in entries
        )
    )


def _backed_up(path: Path, old: bytes, mode: int) -> Path:
    """Keep what was there beside the file, under a name of its own; only the last few are kept."""
    form = re.compile(rf"{re.escape(path.name)}\.vmimage-([0-9]{{8}}-[0-9]{{6}})(?:-([0-9]{{1,9}}))?")
    backups = {}
    for each in path.parent.iterdir():
        if match := form.fullmatch(each.name):
            backups[match[1], int(match[2] or 1)] = each
    now = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    number = max((number for second, number in backups if second == now), default=0) + 1
    backup = path.with_name(f"{path.name}.vmimage-{now}" + (f"-{number}" if number > 1 else ""))
    with written_beside(backup, mode=mode) as beside:
        beside.write_bytes(old)
    backups[now, number] = backup
    for _, each in sorted(backups.items())[:-KEPT_BACKUPS]:
        each.unlink(missing_ok=True)
    return backup


def _round_trip() -> YAML:
    found = YAML()
    found.preserve_quotes = True
    # Certificates are long words; a line that is broken is no longer as its user wrote it.
    found.width = 1 << 20
    return found
