"""Commands that are killed at any moment, each in a process of its own, after a random part of the time that it takes.

VMIMAGE_KILL_SEED tries other moments; a failure names its seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.tools import step_into
from vmimage.cache.store import Store
from vmimage.stages.release.mark import MARK
from vmimage.util.files import sha256_file
from vmimage.util.settings import Options

SEED = int(os.environ.get("VMIMAGE_KILL_SEED", "20261128"))
ROUNDS = 5
RESULTS = 12


def began(run: Callable[[], object]) -> int:
    """Run something in a process of its own; returns its id once it has begun."""
    told, tells = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            for number in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.write(tells, b"x")
            run()
        os._exit(0)
    os.close(tells)
    os.read(told, 1)
    os.close(told)
    return child


def killed(run: Callable[[], object], signum: int, seconds: float) -> None:
    child = began(run)
    time.sleep(seconds)
    os.kill(child, signum)
    os.waitpid(child, 0)


def time_of(run: Callable[[], object]) -> float:
    started = time.monotonic()
    os.waitpid(began(run), 0)
    return time.monotonic() - started


@dataclass
class Scene:
    """A folder with a cache, releases, and the user's files; made anew for each kill."""

    folder: Path
    port: int = 0

    @property
    def options(self) -> Options:
        return Options(cache=self.folder / "cache", dist=self.folder / "dist", state=self.folder / "state")

    @property
    def store(self) -> Store:
        return Store(self.folder / "cache")

    def fill_cache(self) -> None:
        store = self.store
        for number in range(RESULTS):
            store.get_or_make("stage", {"a": number}, _made, step_into([]))
        store.close()

    def require_whole_cache(self) -> None:
        store = self.store
        for found in store.results():
            assert store.intact(found)
        for path in (store.root / "files").iterdir():
            assert sha256_file(path) == path.name


def _made(work: Path) -> dict[str, object]:
    for name in ("a", "b"):
        (work / name).write_bytes(os.urandom(20_000))
    return {}


class Command(Protocol):
    """A command to kill."""

    def prepare(self, scene: Scene) -> None:
        """Make what it works on."""

    def run(self, scene: Scene) -> None:
        """Do what it does; it comes to an end."""

    def check(self, scene: Scene) -> None:
        """Check that there is the old or the new, and nothing between."""

    def check_next(self, scene: Scene) -> None:
        """Check what the next run has made of it."""


def _age(folder: Path) -> None:
    """Let what waits beside files be so old that nobody can be about to lock it."""
    for path in folder.rglob(".*vmimage-*"):
        os.utime(path, (0, 0))


def require_survival(name: str, command: Command, port: int, folder: Path) -> None:
    """Kill a command ROUNDS times, each time on something new, and check what is left of it and after the next run."""
    chance = random.Random(f"{SEED} {name}")  # noqa: S311 - moments, no secrets
    for number in range(ROUNDS + 1):
        scene = Scene(folder / str(number), port)
        scene.folder.mkdir()
        command.prepare(scene)

        def run(scene: Scene = scene) -> None:
            command.run(scene)

        if not number:
            whole = time_of(run)
            continue
        signum = chance.choice([signal.SIGKILL, signal.SIGTERM])
        moment = chance.uniform(0, 1.1) * whole
        killed(run, signum, moment)
        try:
            command.check(scene)
            _age(scene.folder)
            time_of(run)
            command.check(scene)
            command.check_next(scene)
            assert not [path.name for path in scene.folder.rglob(".*") if path.name != MARK], "a file is left"
            left = [str(path) for path in (scene.folder / "cache/work").rglob("*")]
            assert not left, f"a work folder is left: {left}"
        except BaseException as error:
            error.add_note(f"{name}: VMIMAGE_KILL_SEED={SEED}: {signum.name} after {moment:.3f} of {whole:.3f} s")
            raise
