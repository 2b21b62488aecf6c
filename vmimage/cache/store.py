"""Content-addressed results: a stage's key names a folder, which is complete or absent, never half.

    files/SHA256            verified third-party files
    STAGE/KEY/              results of a stage; inputs.json is what the key was made from
    work/NAME/              where results are made; moved into place when complete
    kept/NAME/              what --keep-failed left
    locks/                  flock(2), so a lock dies with its process: one for who makes a result, one for who uses it
    logs/RUN/               one folder a run, the newest kept

CACHEDIR.TAG marks the folder as ours; one that holds other things is refused. Only names of our form are removed.

A work folder whose lock nobody holds belongs to a process that died; the next run removes it. A result whose files
have another size or time than when it was made is damaged, and is made again; bytes are compared when asked, and
before anything new is made from them.

Inputs may name the result that they build on, as `after: STAGE/KEY`. A result of the stage `layer` is worth nothing
without the one beneath it, so both go together. Others outlive it; but if it is made again, with other bytes under the
same key, what was made from the bytes before is made again as well (`below` in meta.json).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from vmimage.cache.ours import is_entry, make_folder, open_root
from vmimage.cache.result import INPUTS, LAYER, META, Result, layers_above, making, read_noted, stage_key
from vmimage.disk.raw import content_digest
from vmimage.util.console import Step, human_bytes
from vmimage.util.errors import HostError
from vmimage.util.files import fullness_told, listed, peak_disk_use, remove_tree, stamp, sync, sync_tree
from vmimage.util.links import require_no_link_of_others
from vmimage.util.locks import lock_file

FOLDERS = ("files", "work", "locks", "logs", "kept")
NO_STAGES = (*FOLDERS, "partial")

# What a stage is taken to need before any of its kind was made here.
FIRST_ESTIMATE = {"base": 3 << 30, "bake": 3 << 30, "export": 3 << 30, "verify": 3 << 30}
SPARE_BYTES = 256 << 20
ROOM = "make room (`invoke cache`, `invoke clean --keep 10G`), or set VMIMAGE_CACHE to a folder on a larger disk"


class Store:
    """The folder in which results are kept; safe for any number of processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Locks on results that this process uses, as file descriptors: they end with the process.
        self._used: dict[str, int] = {}
        try:
            open_root(root)
            for name in FOLDERS:
                make_folder(root / name)
        except OSError as error:
            raise HostError(
                f"cannot write to the cache {root}: {error.strerror}", hint="set VMIMAGE_CACHE to another folder"
            ) from error

    @contextlib.contextmanager
    def lock(self, name: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold an exclusive lock; `on_wait` is called once if another process holds it."""
        file = self.try_lock(name)
        if not file and on_wait:
            on_wait()
        file = file or self._locked(name, fcntl.LOCK_EX)
        assert file  # noqa: S101 - it waited
        with file:
            yield

    def try_lock(self, name: str) -> IO[str] | None:
        """Take an exclusive lock if nobody holds it; it is given back by closing the file."""
        return self._locked(name, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _locked(self, name: str, how: int) -> IO[str] | None:
        return lock_file(self.root / "locks" / name, how)

    def find(self, stage: str, inputs: Mapping[str, object], *, below: Result | None = None) -> Result | None:
        """Return the complete result for these inputs, if there is one whose files are as they were made.

        Args:
            below: What it is to be made from.
        """
        return self.result(stage, stage_key(inputs), below=below)

    def result(self, stage: str, key: str, *, below: Result | None = None) -> Result | None:
        """Return a complete result by its key."""
        path = self.root / stage / key
        try:
            meta = read_noted(path / META)
            content = meta["content"].items()
            same = not below or meta.get("below") == below.meta.get("id")
            same = same and all(stamp(path / name) == (facts["bytes"], facts["mtime_ns"]) for name, facts in content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Result(stage=stage, path=path, key=key, meta=meta, cached=True) if same else None

    def results(self) -> list[Result]:
        """Return all complete results."""
        paths = [path for each in listed(self.root) if each.name not in NO_STAGES for path in listed(each)]
        return [found for path in paths if (found := self.result(path.parent.name, path.name))]

    def earlier(self, stage: str) -> list[Mapping[str, Any]]:
        """Return the inputs of all complete results of a stage, the latest used first."""
        found: list[tuple[float, Mapping[str, Any]]] = []
        for each in (each for each in self.results() if each.stage == stage):
            # Another process may remove it at any time.
            with contextlib.suppress(OSError, ValueError):
                found.append(((each.path / META).stat().st_mtime, each.inputs))
        return [inputs for _, inputs in sorted(found, key=itemgetter(0), reverse=True)]

    def intact(self, found: Result) -> bool:
        """Compare all bytes of a result with what was noted when it was made."""
        content = found.meta["content"].items()
        return all(content_digest(found.path / name) == facts["digest"] for name, facts in content)

    def file(self, sha256: str) -> Path:
        """Return where the verified third-party file of a digest is, or will be."""
        return self.root / "files" / sha256

    def hold(self, stage: str, key: str) -> None:
        """Keep something from being removed while this process lives, or until `let_go`."""
        name = f"use-{stage}-{key}"
        if name not in self._used:
            file = self._locked(name, fcntl.LOCK_SH)
            assert file  # noqa: S101 - it waited
            with file:
                self._used[name] = os.dup(file.fileno())

    def use(self, stage: str, key: str, *, below: Result | None = None, check: bool = False) -> Result | None:
        """Return a result, and hold it.

        Args:
            below: What it is to be made from.
            check: Compare its bytes; one that is not what was made is as good as none.
        """
        self.hold(stage, key)
        found = self.result(stage, key, below=below)
        if not found or (check and not self.intact(found)):
            self.let_go(stage, key)
            return None
        # The time of its last use, for `invoke clean --keep`.
        os.utime(found.path / META)
        return found

    def let_go(self, stage: str, key: str) -> None:
        """Take no more interest in a result."""
        descriptor = self._used.pop(f"use-{stage}-{key}", None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Hold nothing any more."""
        for name in list(self._used):
            os.close(self._used.pop(name))

    def remove(self, stage: str, key: str, *, step: Step | None = None) -> bool:
        """Remove a result, and the layers on it.

        Args:
            step: Is told if another process uses it, which is waited for; without one nothing is removed then.

        Returns:
            Whether it was removed.
        """
        self.let_go(stage, key)
        name = f"use-{stage}-{key}"
        file = self.try_lock(name)
        if not file and step:
            step.now(f"another process uses {stage}/{key}; waiting for its end")
            file = self._locked(name, fcntl.LOCK_EX)
        if not file:
            return False
        with file:
            # Who uses a layer uses all beneath it: so nobody uses these.
            folders = [self.root / stage / key, *(self.root / LAYER / above for above in self.layers_on(stage, key))]
            with self.workspace("remove") as work:
                for folder in reversed(folders):
                    with contextlib.suppress(FileNotFoundError):
                        # At once, so that no half of it is ever seen.
                        folder.rename(work / folder.name)
            (self.root / "locks" / name).unlink(missing_ok=True)
        return True

    def layers_on(self, stage: str, key: str) -> list[str]:
        """Return the keys of all layers that stand on a result, the lowest first."""
        return layers_above(f"{stage}/{key}", listed(self.root / LAYER))

    def get_or_make(
        self,
        stage: str,
        inputs: Mapping[str, object],
        make: Callable[[Path], Mapping[str, object]],
        step: Step,
        *,
        below: Result | None = None,
        fresh: bool = False,
        check: bool = False,
    ) -> Result:
        """Return the result for these inputs, made by `make` in a work folder if it is not there yet.

        Args:
            make: Fills the folder it is given and returns facts to note in `meta`.
            step: Is told what goes on.
            below: What it is made from; a result that was made from another is as good as none.
            fresh: Make it again even if it is there.
            check: Compare the bytes of a result that is there; if they changed, make it again.

        Raises:
            HostError: The disk has too little room, or became full.
        """
        key = stage_key(inputs)
        with self.lock(making(stage, key), on_wait=step.wait):
            found = None if fresh else self.use(stage, key, below=below, check=check)
            if found:
                step.outcome = "unchanged, from the cache"
                return found
            if (self.root / stage / key).exists():
                if not fresh:
                    other = self.result(stage, key) and not self.result(stage, key, below=below)
                    why = "was made from another result" if other else "in the cache is damaged"
                    step.now(f"{stage}/{key} {why}: it is made again")
                self.remove(stage, key, step=step)
            self.require_space(stage, step)
            with self.workspace(stage) as work, peak_disk_use(work) as peak, fullness_told(self.root, ROOM):
                started = time.monotonic()
                meta = dict(make(work))
                meta |= {"seconds": round(time.monotonic() - started, 1), "peak_bytes": peak()}
                found = self.add(stage, inputs, work, meta, below=below)
        return replace(found, cached=False)

    def add(
        self,
        stage: str,
        inputs: Mapping[str, object],
        folder: Path,
        meta: Mapping[str, object],
        *,
        below: Result | None = None,
    ) -> Result:
        """Make a finished folder the result for these inputs, and hold it.

        Args:
            below: What it was made from.
        """
        content = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
            size, changed = stamp(path)
            content[str(path.relative_to(folder))] = {
                "bytes": size,
                "mtime_ns": changed,
                "digest": content_digest(path),
            }
        (folder / INPUTS).write_text(json.dumps(inputs, indent=2, sort_keys=True) + "\n")
        # Last, since it marks the result as complete.
        facts = {**meta, "content": content, "id": uuid.uuid4().hex, "below": below.meta.get("id") if below else None}
        (folder / META).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
        key = stage_key(inputs)
        # Before it is seen: from then on it could be removed.
        self.hold(stage, key)
        self.publish(folder, self.root / stage / key)
        return Result(stage=stage, path=self.root / stage / key, key=key, meta=facts, cached=False)

    def estimate(self, stage: str) -> int:
        """Return the bytes of disk that a stage may need: what it needed before, or a first guess."""
        known = [found.meta.get("peak_bytes", 0) for found in self.results() if found.stage == stage]
        return max(known) if known else FIRST_ESTIMATE.get(stage, 0)

    def require_space(self, stage: str, step: Step) -> None:
        """Say what a stage needs of the disk.

        Raises:
            HostError: There is not so much.
        """
        needed, free = self.estimate(stage), shutil.disk_usage(self.root).free
        step.now(f"needs about {human_bytes(needed)} of disk, {human_bytes(free)} are free")
        if free < needed + SPARE_BYTES:
            raise HostError(
                f"{self.root} has {human_bytes(free)} free, and {stage} needs about {human_bytes(needed)}",
                hint=ROOM,
            )

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
        sync_tree(work)
        moved = False
        while not moved:
            # `invoke clean` removes folders that are empty, at any time before something is in this one.
            final.parent.mkdir(parents=True, exist_ok=True)
            require_no_link_of_others(final.parent)
            if final.is_dir() and work.is_dir():
                remove_tree(final)
            try:
                work.rename(final)
                moved = True
            except FileNotFoundError:
                if not work.exists():
                    raise
        sync(final.parent)

    def sweep(self) -> list[str]:
        """Remove what killed processes left; returns the names of the work folders removed."""
        removed = []
        # Of what nobody holds, and of work folders further down, whose locks tell whether they are in use.
        for path in listed(self.root / "locks"):
            if path.name.startswith("work-") or not path.is_file():
                continue
            file = self.try_lock(path.name)
            if file:
                with file:
                    path.unlink(missing_ok=True)
        for path in listed(self.root / "work"):
            if not is_entry("work", path.name):
                continue
            lock = self.root / "locks" / f"work-{path.name}"
            file = self.try_lock(lock.name)
            if file:
                with file:
                    remove_tree(path)
                    lock.unlink(missing_ok=True)
                    removed.append(path.name)
        return removed
