"""Content-addressed results: a stage's key names a folder, which is complete or absent, never half.

    files/SHA256            verified third-party files
    STAGE/KEY/              results of a stage; inputs.json is what the key was made from
    work/NAME/              where results are made; moved into place when complete
    locks/                  one file a key; flock(2), so a lock dies with its process
    logs/RUN/               one folder a run, the newest kept

A work folder whose lock nobody holds belongs to a process that died; the next run removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmimage.errors import HostError
from vmimage.run import Confine, run

INPUTS = "inputs.json"
META = "meta.json"
KEY_LENGTH = 16


def stage_key(inputs: Mapping[str, object]) -> str:
    """Return the key of a stage: the start of the SHA-256 over its inputs as canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Result:
    """A complete result of a stage.

    Attributes:
        meta: What the stage noted: `seconds` it took, `peak_bytes` of disk it used, and facts of its own.
        cached: It was there already.
    """

    path: Path
    key: str
    meta: Mapping[str, object]
    cached: bool


class Store:
    """The folder in which results are kept; safe for any number of processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            for name in ("files", "work", "locks", "logs"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostError(
                f"cannot write to the cache {root}: {error.strerror}", hint="set VMIMAGE_CACHE to another folder"
            ) from error

    @contextlib.contextmanager
    def lock(self, name: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold an exclusive lock; `on_wait` is called once if another process holds it."""
        with (self.root / "locks" / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait:
                    on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def find(self, stage: str, inputs: Mapping[str, object]) -> Result | None:
        """Return the complete result for these inputs, if there is one."""
        key = stage_key(inputs)
        path = self.root / stage / key
        try:
            meta = json.loads((path / META).read_text())
        except FileNotFoundError:
            return None
        return Result(path=path, key=key, meta=meta, cached=True)

    def get_or_make(
        self,
        stage: str,
        inputs: Mapping[str, object],
        make: Callable[[Path], Mapping[str, object]],
        *,
        on_wait: Callable[[], None] | None = None,
    ) -> Result:
        """Return the result for these inputs, made by `make` in a work folder if it is not there yet.

        Args:
            make: Fills the folder it is given and returns facts to note in `meta`.
            on_wait: Called when another process is making the same result.
        """
        key = stage_key(inputs)
        with self.lock(f"{stage}-{key}", on_wait=on_wait):
            found = self.find(stage, inputs)
            if found:
                return found
            with self.workspace(stage) as work, peak_disk_use(work) as peak:
                started = time.monotonic()
                meta = dict(make(work))
                meta |= {"seconds": round(time.monotonic() - started, 1), "peak_bytes": peak()}
                (work / INPUTS).write_text(json.dumps(inputs, indent=2, sort_keys=True) + "\n")
                # Last, since it marks the result as complete.
                (work / META).write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n")
                self.publish(work, self.root / stage / key)
        return Result(path=self.root / stage / key, key=key, meta=meta, cached=False)

    @contextlib.contextmanager
    def workspace(self, purpose: str) -> Iterator[Path]:
        """Give an empty folder that is removed at the end, or by the next run if this process is killed."""
        name = f"{purpose}-{uuid.uuid4().hex[:8]}"
        path = self.root / "work" / name
        lock = self.root / "locks" / f"work-{name}"
        with self.lock(lock.name):
            path.mkdir()
            try:
                yield path
            finally:
                remove_tree(path)
                lock.unlink(missing_ok=True)

    def publish(self, work: Path, final: Path) -> None:
        """Move a finished file or folder to its final name, on disk before it is visible.

        `work` may be the workspace itself; an incomplete older `final` is replaced.
        """
        final.parent.mkdir(parents=True, exist_ok=True)
        sync_tree(work)
        if final.is_dir() and work.is_dir():
            remove_tree(final)
        work.rename(final)
        sync(final.parent)

    def sweep(self) -> list[str]:
        """Remove what killed processes left; returns the names of the work folders removed."""
        removed = []
        for path in sorted((self.root / "work").iterdir()):
            lock = self.root / "locks" / f"work-{path.name}"
            with lock.open("w") as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(path)
                lock.unlink(missing_ok=True)
                removed.append(path.name)
        return removed


def remove_tree(path: Path) -> None:
    """Remove a folder, also when files in it belong to subordinate users (base stage)."""
    if not path.exists():
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        run(["rm", "-rf", "--one-file-system", path], confine=Confine.FAKE_ROOT)


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
