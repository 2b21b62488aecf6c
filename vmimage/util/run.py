"""The only place that starts processes.

Every child dies with us, however we die. `setpriv --pdeathsig` covers one process; a tool that starts
others (packer, mmdebstrap) also gets a PID namespace of its own, since the kernel kills everything in a
PID namespace when its first process ends: no process group, session or double fork escapes it.
See prctl(2) PR_SET_PDEATHSIG and pid_namespaces(7).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType

from vmimage.util.errors import BuildError, HostError, VmimageError

log = logging.getLogger(__name__)

TAIL_LINES = 30
MOST_OUTPUT = 256 << 20
"""Characters that any program may say: what steps and tests say comes from guests."""

_running: set[subprocess.Popen[str]] = set()
_guard = threading.Lock()


class Confine(Enum):
    """How far a child is confined."""

    PROCESS = "one process"
    TREE = "a process and all it starts"
    FAKE_ROOT = "the same, and it is root over files that it makes (user namespace; real root when we are)"


@dataclass(frozen=True, kw_only=True)
class Completed:
    """What a finished process left: its exit status, its output (stdout and stderr together), its seconds."""

    argv: tuple[str, ...]
    returncode: int
    output: str
    seconds: float


def confined(argv: Sequence[str | Path], confine: Confine, *, is_root: bool | None = None) -> list[str]:
    """Return the argument list that runs `argv` confined; pure, so that tests can read it."""
    root = os.geteuid() == 0 if is_root is None else is_root
    command = ["setpriv", "--pdeathsig", "KILL"]
    if confine is Confine.TREE:
        command += ["unshare", *([] if root else ["--user", "--map-current-user"]), "--fork", "--pid", "--kill-child"]
    elif confine is Confine.FAKE_ROOT:
        command += ["unshare", *([] if root else ["--map-auto", "--map-root-user"])]
        command += ["--fork", "--pid", "--kill-child", "--mount"]
    return [*command, *map(str, argv)]


@contextlib.contextmanager
def spawn(
    argv: Sequence[str | Path],
    *,
    confine: Confine = Confine.PROCESS,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    output: int | Path = subprocess.DEVNULL,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Run a process for the length of a `with` block and kill what is left of it at the end.

    Args:
        output: A file for stdout and stderr together, or a `subprocess` constant.
        env: Variables added to our own environment.
    """
    log.debug("$ %s", shlex.join(map(str, argv)))
    with contextlib.ExitStack() as stack:
        if isinstance(output, Path):
            output.write_bytes(b"")
        # For appending: who bounds such a file cuts it while it is written.
        stdout = stack.enter_context(output.open("ab")) if isinstance(output, Path) else output
        try:
            process = subprocess.Popen(
                confined(argv, confine),
                env={**os.environ, **(env or {})},
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # A session of its own: Ctrl-C reaches only us, and we end our children in order.
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except FileNotFoundError as error:
            raise HostError(
                f"cannot start {argv[0]}: {error.strerror}: {error.filename}", hint="run `invoke doctor`"
            ) from error
        with _guard:
            _running.add(process)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            with _guard:
                _running.discard(process)
            if process.stdout:
                process.stdout.close()


def kill_running() -> None:
    """Kill every child: threads that wait for one then end, where we are to end before them."""
    with _guard:
        for process in _running:
            process.kill()


def run(
    argv: Sequence[str | Path],
    *,
    confine: Confine = Confine.PROCESS,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    timeout: float | None = None,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
    most_output: int | None = None,
    error: type[VmimageError] = BuildError,
) -> Completed:
    """Run a command to its end; every line of its output goes to the log, and to `on_line`.

    Args:
        timeout: Seconds until it is killed.
        check: Raise `error`, with the end of the output, when it exits with another status than 0.
        most_output: Characters that it may say, for one that reads what is not ours; else MOST_OUTPUT.

    Raises:
        VmimageError: (the type given as `error`) it failed, took longer than `timeout`, or said too much.
    """
    started = time.monotonic()
    lines, said = list[str](), 0
    with spawn(argv, confine=confine, env=env, cwd=cwd, output=subprocess.PIPE, stdin=stdin) as process:
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for; this tells mypy
        threading.Thread(target=_end_group, args=(process.pid,), daemon=True).start()
        with _deadline(process, timeout) as expired:
            most = most_output or MOST_OUTPUT
            while raw := process.stdout.readline(most + 1):
                said += len(raw)
                if said > most:
                    raise error(f"`{shlex.join(map(str, argv))}` says more than {most} characters")
                line = raw.rstrip("\n")
                lines.append(line)
                # What is bounded is data that is read, a list of all files for instance.
                if not most_output:
                    log.debug("| %s", line)
                if on_line:
                    on_line(line)
            returncode = process.wait()
    seconds = time.monotonic() - started
    done = Completed(argv=tuple(map(str, argv)), returncode=returncode, output="\n".join(lines), seconds=seconds)
    log.debug("= exit %s after %.1f s", returncode, seconds)
    if check and (returncode or expired):
        why = f"did not end within {timeout:.0f} s" if expired else f"failed with exit status {returncode}"
        raise error(f"`{shlex.join(done.argv)}` {why}{tail(done.output)}")
    return done


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """Return the last lines of an output, indented, to stand behind an error message."""
    kept = [line for line in text.splitlines() if line.strip()][-lines:]
    return "".join(f"\n    {line}" for line in kept)


def _end_group(pid: int) -> None:
    """When a process has ended, end what it left in its group: it would hold our pipe open, and us with it.

    `unshare` of util-linux 2.41 leaves a child behind where user namespaces are forbidden.
    """
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        # Not reaped here, so that its number stays its own until the group is gone.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[str], seconds: float | None) -> Iterator[list[bool]]:
    """Kill the process after some seconds; the list yielded is then no longer empty."""
    expired: list[bool] = []
    if seconds is None:
        yield expired
        return

    def expire() -> None:
        expired.append(True)
        process.kill()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


@contextlib.contextmanager
def orderly_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that every `with` block closes as it does on Ctrl-C."""

    def leave(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
