"""Programs that read what is not ours, such as a disk that somebody sends: limited, and shut in where this host can.

Such a program has limits of memory, of processor time, of the size of a file and of its output. In namespaces of its
own it reaches no network, and writes to nothing but the folders that it is given (see confine_exec.py). Where user
namespaces are forbidden, in many containers, the limits alone hold; the log and `invoke doctor` tell.
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vmimage.util.errors import BuildError, HostError, VmimageError
from vmimage.util.run import Completed, run, tail

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("confine_exec.py")
NOT_STARTED = 125
"""Its exit status when it cannot confine, or there is no such program."""
ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",  # what they say is read
    "MALLOC_ARENA_MAX": "2",  # else each of their threads takes 64 MiB of address space
}
PROBE_SECONDS = 20.0
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use.

    Attributes:
        memory: Bytes of address space.
        file_size: Bytes of a file that it writes, holes included.
        seconds: Until it is killed; as much processor time as that on two processors.
        open_files: At once.
        output: Characters that it may say.
    """

    memory: int = 4 * GIB
    file_size: int = 2 * TIB
    seconds: float = 600.0
    open_files: int = 256
    output: int = 16 * MIB

    def arguments(self) -> list[str]:
        """Return them as confine_exec.py takes them."""
        limits = {
            "AS": self.memory,
            "FSIZE": self.file_size,
            "CPU": int(2 * self.seconds),
            "NOFILE": self.open_files,
            "CORE": 0,
        }
        return [part for name, number in limits.items() for part in ("--rlimit", f"{name}={number}")]


DEFAULT = Limits()


def confined_argv(argv: Sequence[str | Path], writable: Sequence[Path], limits: Limits, *, shut_in: bool) -> list[str]:
    """Return the argument list that runs `argv` confined; pure, so that tests can read it.

    Args:
        writable: Folders in which it may write.
        shut_in: In namespaces of its own.
    """
    command = [sys.executable, "-I", "-S", str(PROGRAM), *limits.arguments()]
    if shut_in:
        folders = [part for folder in writable for part in ("--writable", str(folder.absolute()))]
        command += ["--namespaces", *folders]
    return [*command, "--", *map(str, argv)]


def run_confined(
    argv: Sequence[str | Path],
    *,
    writable: Sequence[Path] = (),
    limits: Limits = DEFAULT,
    check: bool = True,
    error: type[VmimageError] = BuildError,
) -> Completed:
    """Run a program on what is not ours, confined, to its end.

    Args:
        writable: Folders in which it may write.
        check: Raise `error`, with the end of its output, when it exits with another status than 0.

    Raises:
        VmimageError: (the type given as `error`) it failed, or went beyond a limit, whatever `check` says.
        HostError: It could not be started.
    """
    command = confined_argv(argv, writable, limits, shut_in=shuts_in())
    done = run(command, env=ENVIRONMENT, timeout=limits.seconds, check=False, most_output=limits.output, error=error)
    said = f"`{shlex.join(map(str, argv))}`"
    if done.returncode == NOT_STARTED:
        raise HostError(done.output, hint="run `invoke doctor`")
    if done.returncode == -signal.SIGXCPU or done.seconds >= limits.seconds:
        raise error(f"{said} did not end within {limits.seconds:.0f} s{tail(done.output)}")
    if done.returncode < 0:
        raise error(f"{said} was ended by {signal.Signals(-done.returncode).name}{tail(done.output)}")
    if check and done.returncode:
        raise error(f"{said} failed with exit status {done.returncode}{tail(done.output)}")
    return done


@cache
def shuts_in() -> bool:
    """Tell whether a program can be given namespaces of its own on this host."""
    done = run(
        confined_argv(["true"], [PROGRAM.parent], DEFAULT, shut_in=True),
        timeout=PROBE_SECONDS,
        check=False,
    )
    if done.returncode:
        log.warning("programs that read foreign disks have limits only, no namespaces: %s", done.output)
    return done.returncode == 0
