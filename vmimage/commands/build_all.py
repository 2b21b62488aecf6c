"""`invoke build-image --all`: every image, some at the same time, each by a process and with a log of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vmimage import PROJECT
from vmimage.util.console import Console, read_event
from vmimage.util.errors import VmimageError
from vmimage.util.run import spawn

END_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the build of one image ended.

    Attributes:
        said: The folder of its release, or what failed.
        hint: What to do about that.
    """

    image: str
    exit_code: int
    seconds: float
    said: str
    log: str
    hint: str = ""


class _Builds:
    """Builds at work; they are ended in good order when we are."""

    def __init__(self, console: Console, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._console = console
        self._arguments = arguments
        self._environment = environment
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def build(self, image: str) -> Outcome:
        """Build one image, and pass on what it tells."""
        argv = [sys.executable, "-m", "invoke", "build-image", image, "--json", *self._arguments]
        started = time.monotonic()
        log, said, hint = "", "", ""
        with spawn(argv, cwd=PROJECT, env=self._environment, output=subprocess.PIPE) as process:
            with self._lock:
                self._running.add(process)
                if self._ended:
                    process.terminate()
            assert process.stdout  # noqa: S101 - it is a pipe
            for line in process.stdout:
                told = read_event(line)
                if not told:
                    continue
                self._pass_on(image, told)
                if told["event"] == "run":
                    log = f"{told.get('log')}/run.log"
                elif told["event"] == "error":
                    said, hint = str(told["message"]), str(told.get("hint", ""))
                elif told["event"] == "result":
                    said = str(told["release"])
            exit_code = process.wait()
            with self._lock:
                self._running.discard(process)
        seconds = time.monotonic() - started
        return Outcome(image=image, exit_code=exit_code, seconds=seconds, said=said, log=log, hint=hint)

    def _pass_on(self, image: str, told: dict[str, Any]) -> None:
        fields = {key: value for key, value in told.items() if key not in ("event", "time", "image")}
        self._console.event(told["event"], image=image, **fields)
        if told.get("ok") is not None:
            mark = "done" if told["ok"] else "FAILED"
            self._console.say(f"{image}: {told['stage']} {mark}, {told['seconds']:.0f} s  {told['outcome']}")

    def end(self) -> None:
        """Let all that run leave nothing behind."""
        with self._lock:
            self._ended = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=END_SECONDS)


def build_all(
    images: Sequence[str],
    jobs: int,
    arguments: Sequence[str],
    console: Console,
    environment: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Build images, `jobs` at the same time; what they share is made once, by whoever comes first.

    Args:
        arguments: Options of `invoke build-image` for each.
        environment: Variables for each, beside our own: what others may not read in its arguments.

    Raises:
        VmimageError: Some failed; the others were built all the same. Its exit code is that of the first failure.
    """
    builds = _Builds(console, arguments, environment or {})
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            outcomes = list(pool.map(builds.build, images))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            builds.end()
            raise
    console.event("summary", images=[vars(outcome) for outcome in outcomes])
    console.say("\n" + "\n".join(map(summary_line, outcomes)))
    failed = [outcome for outcome in outcomes if outcome.exit_code]
    if failed:
        error = VmimageError(
            "\n\n".join(f"{outcome.image} failed:\n{outcome.said}\nlog: {outcome.log}" for outcome in failed),
            hint=joined_hints(failed),
        )
        error.exit_code = failed[0].exit_code
        raise error
    return outcomes


def joined_hints(failed: Sequence[Outcome]) -> str:
    """Return the hints of builds that failed, each once, with the images that it is for."""
    images: dict[str, list[str]] = {}
    for outcome in failed:
        if outcome.hint:
            images.setdefault(outcome.hint, []).append(outcome.image)
    return "\n".join(f"{', '.join(names)}: {hint}" for hint, names in images.items())


def summary_line(outcome: Outcome) -> str:
    """Return how one build ended, for people."""
    first = outcome.said.splitlines()[0] if outcome.said else f"ended with {outcome.exit_code}"
    return (
        f"{outcome.image:<16} {'released' if not outcome.exit_code else 'FAILED':<9} {outcome.seconds:6.0f} s  {first}"
    )
