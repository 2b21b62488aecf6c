"""Progress for people, JSON lines for machines, and the full log of the run.

On a terminal a stage has a live line with a bar; elsewhere it prints a line when it starts, its steps as
they come, and one when it ends. With `--json`, standard output carries one JSON object a line instead:
`{"time": ISO 8601, "event": "start|step|end|warning|result|error", "stage": …, …}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmimage.util.links import require_no_link_of_others
from vmimage.util.masking import masked_data
from vmimage.util.printable import printable

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID

log = logging.getLogger("vmimage")


def _safe(text: str) -> str:
    """Return a text for Rich: without its markup, and without what a terminal would obey."""
    from rich.markup import escape

    return escape(printable(text))


class Step:
    """A stage at work: tells what it is doing now, and in the end what came of it."""

    def __init__(self, emit: Callable[[str, str], None], progress: Progress | None, task: TaskID | None) -> None:
        self._emit = emit
        self._progress = progress
        self._task = task
        self.outcome = ""
        self.seconds = 0.0

    def now(self, text: str) -> None:
        """Say what is being done at this moment."""
        self._emit("step", text)
        if self._progress and self._task is not None:
            self._progress.update(self._task, note=_safe(text))

    def wait(self) -> None:
        """Say that another process is making the same result."""
        self.now("another process is making the same; waiting for it")

    def bar(self, label: str) -> Callable[[int, int | None], None]:
        """Add a bar; the function returned takes the bytes that are done, and all of them if that is known."""
        if not self._progress:
            return lambda *_: None
        progress, task = self._progress, self._progress.add_task(f"  {_safe(label)}", total=None, note="", size="")

        def update(done: int, total: int | None) -> None:
            size = human_bytes(done) + (f" of {human_bytes(total)}" if total else "")
            progress.update(task, completed=done, total=total, size=size)

        return update


class _RunLog(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Leave it to what is logged to fail on a disk that is full, and to say so."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line of the log, which people read in terminals."""
        return printable(super().format(record))


class Console:
    """What one run prints, and its log file."""

    def __init__(self, *, log_dir: Path | None = None, json_lines: bool = False) -> None:
        self.log_dir = log_dir
        self.json_lines = json_lines
        self._writing = threading.Lock()
        if log_dir:
            # Programs say what they like, and their output is kept: for nobody else to read.
            log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (log_dir, log_dir / "run.log"):
                require_no_link_of_others(path)
            handler = _RunLog(log_dir / "run.log", encoding="utf-8")
            handler.setFormatter(_Formatter("%(asctime)s %(name)s: %(message)s"))
            log.addHandler(handler)
            log.setLevel(logging.DEBUG)
            log.propagate = False

    @cached_property
    def _rich(self) -> RichConsole:
        """Standard error; many commands print nothing there."""
        from rich.console import Console as RichConsole

        return RichConsole(file=sys.stderr, highlight=False)

    def event(self, event: str, **fields: object) -> None:
        """Log an event, and print it as a JSON line when machines are listening."""
        fields = masked_data(fields)
        log.info("%s %s", event, json.dumps(fields, default=str, ensure_ascii=False))
        if self.json_lines:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"time": now, "event": event, **fields}, default=str)
            # Stages work in threads: one write a line, or lines would mix.
            with self._writing:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()

    def say(self, text: str) -> None:
        """Print a line of a task's answer for people, on standard output; progress is on standard error."""
        log.info("%s", text)
        if not self.json_lines:
            print(printable(text), flush=True)  # noqa: T201 - standard output is the interface here

    def warn(self, text: str) -> None:
        """Tell what is wrong and stops nothing: on standard error, and as an event for machines."""
        self.event("warning", message=text)
        if not self.json_lines:
            self._rich.print(f"[yellow]warning:[/] {_safe(text)}", soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, name: str, what: str) -> Iterator[Step]:
        """Show a stage while it works; one line with its time and outcome remains."""
        self.event("start", stage=name, what=what)
        live = self._rich.is_terminal and not self.json_lines
        progress = _progress(self._rich) if live else None
        task = progress.add_task(f"{name:<8}", total=None, note=_safe(what), size="") if progress else None
        if not live and not self.json_lines:
            self._rich.print(f"{_clock()} {name:<8} {_safe(what)}", soft_wrap=True)

        def emit(event: str, text: str) -> None:
            self.event(event, stage=name, what=text)
            if not live and not self.json_lines:
                self._rich.print(f"{_clock()} {name:<8}   {_safe(text)}", soft_wrap=True)

        step = Step(emit, progress, task)
        started = time.monotonic()
        good = False
        try:
            with progress or contextlib.nullcontext():
                yield step
            good = True
        finally:
            seconds = step.seconds = time.monotonic() - started
            outcome = step.outcome if good else "failed"
            self.event("end", stage=name, ok=good, seconds=round(seconds, 2), outcome=outcome)
            if not self.json_lines:
                mark = "[green]✔[/]" if good else "[red]✘[/]"
                clock = "" if live else f"{_clock()} "
                self._rich.print(f"{clock}{mark} {name:<8} {seconds:6.1f} s  {_safe(outcome)}", soft_wrap=True)


def read_event(line: str) -> dict[str, Any] | None:
    """Read a JSON line that `event` wrote; None for whatever else a process says."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def _clock() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


def _progress(console: RichConsole) -> Progress:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[size]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )


def human_bytes(count: float) -> str:
    """Return a size for people: 1449 MiB, 0.6 GiB."""
    for unit in ("B", "KiB"):
        if count < 1 << 10:
            return f"{count:.0f} {unit}"
        count /= 1 << 10
    return f"{count:.0f} MiB" if count < 10 << 10 else f"{count / (1 << 10):.1f} GiB"
