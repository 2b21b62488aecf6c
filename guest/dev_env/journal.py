"""The journal of an update: after an interruption at any moment, the next run knows whether old or new is to stay.

`copying`    the old files are being copied to backups beside them; they are as they were.
`replacing`  every backup is whole; any of the files may be new. The backups are to be put back.
`done`       the cluster is ready with the new files; they stay. The backups are to be removed.

The journal is there before anything is touched, and goes last. Backups are made only by an update that found neither a
journal nor a backup: so none is ever overwritten.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dev_env import Failure, durable
from dev_env.bounds import read_text

STATE = Path("/var/lib/dev-env")
COPYING, REPLACING, DONE = "copying", "replacing", "done"


class Busy(Failure):
    """Another process holds the lock of updates."""


@dataclass(frozen=True)
class Journal:
    """What an update has begun.

    Attributes:
        stage: COPYING, REPLACING or DONE.
        old: The files and folders that it replaces, and that were there before.
        new: Those that were not.
        restart: k3s is stopped and started for it.
    """

    stage: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    restart: bool

    def at(self, stage: str) -> Journal:
        """Note that the update has come to another stage."""
        later = replace(self, stage=stage)
        durable.write(path(), json.dumps(asdict(later)) + "\n")
        return later

    def back_up(self) -> None:
        """Copy what is there beside itself."""
        for name in self.old:
            durable.copy(Path(name), backup_of(Path(name)))

    def put_back(self) -> None:
        """Make all as it was before; what an earlier try did already is not done again."""
        for name in self.new:
            durable.remove(Path(name))
        for name in self.old:
            if durable.there(backup_of(Path(name))):
                durable.move(backup_of(Path(name)), Path(name))
        self.close()

    def close(self) -> None:
        """Remove backups and what was not put into its place; then the journal itself."""
        for name in (*self.old, *self.new):
            durable.remove(beside(Path(name)))
            durable.remove(backup_of(Path(name)))
        durable.remove(path())


def path() -> Path:
    """Return where the journal lies while there is one."""
    return STATE / "update.json"


def workspace() -> Path:
    """Return where a bundle is unpacked."""
    return STATE / "update"


def backup_of(target: Path) -> Path:
    """Return where the old file is kept while the new one has to prove itself."""
    return target.with_name(f".{target.name}.before-update")


def beside(target: Path) -> Path:
    """Return where the new file is written before it is renamed."""
    return target.with_name(f".{target.name}.new")


def begin(targets: Sequence[Path], *, restart: bool) -> Journal:
    """Begin the journal of an update.

    Raises:
        Failure: A backup lies there that belongs to no journal.
    """
    for target in targets:
        if durable.there(backup_of(target)):
            raise Failure(
                f"{backup_of(target)} is there: an update was cut off, and nothing says how far it had come",
                f"if {target} works, remove the backup; else put it back: sudo mv {backup_of(target)} {target}",
            )
    STATE.mkdir(parents=True, exist_ok=True)
    old = tuple(str(target) for target in targets if durable.there(target))
    new = tuple(str(target) for target in targets if str(target) not in old)
    return Journal(COPYING, old, new, restart).at(COPYING)


def found() -> Journal | None:
    """Return the journal of an update that has not ended.

    Raises:
        Failure: It cannot be read.
    """
    if not path().exists():
        return None
    try:
        said = json.loads(read_text(path()))
        known = Journal(said["stage"], tuple(said["old"]), tuple(said["new"]), bool(said["restart"]))
        if known.stage not in (COPYING, REPLACING, DONE) or not all(map(os.path.isabs, (*known.old, *known.new))):
            raise ValueError(f"{known} is none")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Failure(f"{path()} is no journal of an update: {error}", "look at it and at the backups beside k3s, "
                      "kubectl and helm (`.NAME.before-update`), then remove it") from error  # fmt: skip
    return known


@contextmanager
def locked(*, wait: bool = False) -> Iterator[None]:
    """Hold the lock of updates; it ends with the process that holds it, however that ends.

    Args:
        wait: For the process that holds it, as long as that takes.

    Raises:
        Busy: Another process holds it.
    """
    STATE.mkdir(parents=True, exist_ok=True)
    handle = os.open(STATE / "update.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy("an update is running", "wait until it has ended") from error
        yield
    finally:
        os.close(handle)
