"""The project's commands, run in a place of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BUILD_SECONDS = 2400
# A shell lets what it starts in the background ignore Ctrl-C, and all that this starts.
INTERRUPTIBLE = ("env", "--default-signal=INT")


@dataclass(frozen=True)
class Done:
    """A finished command: `events` are its JSON lines."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    def event(self, name: str) -> dict[str, Any]:
        """Return the only event of a kind."""
        (found,) = [event for event in self.events if event["event"] == name]
        return found


@dataclass(frozen=True)
class Sandbox:
    """A copy of the project, and where it builds."""

    project: Path
    cache: Path
    dist: Path
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        own = {"VMIMAGE_CACHE": str(self.cache), "VMIMAGE_DIST": str(self.dist), "VMIMAGE_STATE": str(self.state)}
        return {**os.environ, **own, **self.extra}

    @property
    def state(self) -> Path:
        return self.cache.with_name("state")

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start `invoke ARGS` in the copy."""
        return subprocess.Popen(
            [*INTERRUPTIBLE, sys.executable, "-m", "invoke", *args],
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def invoke(self, *args: str, timeout: float = BUILD_SECONDS) -> Done:
        """Run `invoke ARGS` in the copy to its end."""
        return finished(self.start(*args), timeout)

    def invoke_both(self, other: subprocess.Popen[str], *args: str) -> tuple[Done, Done]:
        """Run `invoke ARGS` in the copy beside what was started before, both to their end."""
        # A pipe that nobody reads would stop one of them when it is full, and the other may wait for that one.
        with ThreadPoolExecutor() as pool:
            first, second = pool.map(finished, (other, self.start(*args)))
        return first, second

    def invoke_until(
        self, reached: Callable[[dict[str, Any]], bool], signum: int, *args: str
    ) -> tuple[int, list[dict[str, Any]]]:
        """Run `invoke ARGS` until an event, send a signal; returns the exit status and the events up to there."""
        process = self.start(*args, "--json")
        told = list[dict[str, Any]]()
        assert process.stdout
        assert process.stderr
        with process.stdout, process.stderr:
            try:
                for line in process.stdout:
                    told.append(json.loads(line))
                    if reached(told[-1]):
                        process.send_signal(signum)
                        break
                else:
                    pytest.fail(f"it ended before: {process.stderr.read()}")
                return process.wait(timeout=60), told
            finally:
                process.kill()
                process.wait()

    def processes(self) -> list[str]:
        """Return the command lines of all processes that work in this sandbox."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and str(self.cache).encode() in (folder / "cmdline").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def nothing_runs(self) -> bool:
        """Wait a little until no process works here any more."""
        end = time.monotonic() + 15
        while self.processes() and time.monotonic() < end:
            time.sleep(0.2)
        return not self.processes()

    def broken(self, folder: Path, name: str, old: str, new: str) -> Sandbox:
        """Return a copy of this project with a change in one file; cache and dist are shared."""
        copy_project(self.project, folder)
        path = folder / name
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        return Sandbox(folder, self.cache, self.dist)

    def versions(self) -> list[str]:
        """Return all that a user sees in dist/."""
        return sorted(path.name for path in self.dist.glob("*/*"))


def finished(process: subprocess.Popen[str], timeout: float = BUILD_SECONDS) -> Done:
    """Wait for a process that `start` started, and kill it when that takes too long."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.wait()
    return Done(process.returncode, stdout, stderr)


def copy_project(source: Path, to: Path) -> None:
    """Copy what a clone has, with the changes that are not committed yet."""
    ignored = shutil.ignore_patterns(".git", ".venv*", "dist", "__pycache__", ".*_cache")
    shutil.copytree(source, to, ignore=ignored, symlinks=True)


def event(stage: str, what: str) -> Callable[[dict[str, Any]], bool]:
    """Match a step of a stage by the start of its text."""
    return lambda seen: seen.get("stage") == stage and str(seen.get("what", "")).startswith(what)
