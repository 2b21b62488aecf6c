"""A family of inputs, each read in a process that has little memory and time, and may write to one folder only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dev_env import Failure

from vmimage.util.errors import VmimageError

MOST_MEMORY = 3 << 29
"""Of address space, beside what Python and its libraries have already."""
CPU_SECONDS = 5
WALL_SECONDS = 20
"""Of one input: the processor may be busy with something else."""
MOST_MESSAGE = 20_000
WORK = "work"
"""Below the folder of an input: what a command that fails may leave for its caller to remove."""
REFUSED, TAKEN = "refused", "taken"


@dataclass(frozen=True, kw_only=True)
class Case:
    """An input: its bytes, or what makes something else of its name, such as a pipe."""

    name: str
    data: bytes | Callable[[Path], object]

    @property
    def text(self) -> bytes:
        assert isinstance(self.data, bytes)
        return self.data

    def put(self, path: Path) -> None:
        if callable(self.data):
            self.data(path)
        else:
            path.write_bytes(self.data)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one reader is given.

    Attributes:
        read: Takes the input and its folder; does what a command does with it. It returns what is then believed, or
            fails as the command fails.
        good: An input that is taken, so that others are refused for what is wrong with them.
        cases: All others.
        codes: Exit codes of its errors; 1 for those of `dev-env`, the guest's own command.
        taken: Pattern of names -> why these are not refused.
        either: Pattern of names -> why these may be taken or refused.
        file: The name of the input.
    """

    read: Callable[[Path, Path], object]
    good: Case
    cases: tuple[Case, ...]
    codes: tuple[int, ...] = (2,)
    taken: Mapping[str, str] = field(default_factory=dict)
    either: Mapping[str, str] = field(default_factory=dict)
    file: str = "input"

    def must_be_refused(self, name: str) -> bool:
        return not _suits(name, self.taken) and not _suits(name, self.either)

    def wrong(self, name: str, found: Mapping[str, Any]) -> str:
        """Return what is wrong with what became of an input; nothing if it is as it should be."""
        outcome = found["outcome"]
        wanted = {TAKEN} if name == self.good.name or _suits(name, self.taken) else {REFUSED}
        wanted |= {TAKEN, REFUSED} if _suits(name, self.either) else set()
        if outcome not in wanted:
            return f"{outcome} instead of {' or '.join(sorted(wanted))}: {found['said']}"
        if outcome == REFUSED and found["code"] not in self.codes:
            return f"exit code {found['code']} instead of {self.codes}: {found['said']}"
        if outcome == REFUSED and not 0 < len(found["said"]) < MOST_MESSAGE:
            return f"a message of {len(found['said'])} characters"
        return f"it wrote {found['wrote']}" if found["wrote"] else ""


def _suits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unused(family: Family) -> list[str]:
    """Return the patterns that suit no input."""
    names = [case.name for case in family.cases]
    return [each for each in (*family.taken, *family.either) if not any(fnmatchcase(name, each) for name in names)]


def try_all(family: Family, base: Path) -> dict[str, str]:
    """Try all inputs of a family in a process of its own; returns name -> what is wrong, of those that went wrong."""
    notes = base / "notes"
    notes.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of xdist, which the child does not use
        child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            _child(family, base, notes)
            status = 0
        os._exit(status)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # programs of a child that was killed
    found = dict(json.loads(line) for line in notes.read_text().splitlines())
    bad = {name: why for name, each in found.items() if (why := family.wrong(name, each) if each else "begun")}
    if status:
        last = next((name for name, each in found.items() if not each), "none")
        number = os.waitstatus_to_exitcode(status)
        bad[last] = f"it ended the process: {signal.Signals(-number).name if number < 0 else number}"
    missing = {case.name for case in family.cases} - found.keys()
    return bad or dict.fromkeys(missing, "not tried")


def _child(family: Family, base: Path, notes: Path) -> None:
    os.setpgid(0, 0)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for each in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(each, signal.SIG_DFL)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))
    home, given = _outside(base), base / "given"
    os.environ |= {"HOME": str(home), "TMPDIR": str(given)}
    os.chdir(home)
    written = _watched(given)
    before = state(home)
    with os.fdopen(os.open(notes, os.O_WRONLY | os.O_APPEND), "w") as file:
        for number, case in enumerate((family.good, *family.cases)):
            print(json.dumps([case.name, {}]), file=file, flush=True)
            signal.alarm(WALL_SECONDS)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            found = _tried(family, case, given / str(number), written)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            found["wrote"] += written + ["a file of the user"] * (state(home) != before)
            written.clear()
            print(json.dumps([case.name, found]), file=file, flush=True)


def _outside(base: Path) -> Path:
    """Make what is the user's: files that inputs name, and nobody changes."""
    home = base / "home"
    (home / ".kube").mkdir(parents=True)
    (home / ".ssh").mkdir(mode=0o700)
    for name in ("escaped", ".kube/config", ".ssh/id_ed25519", ".ssh/known_hosts"):
        (home / name).write_text("the user's\n")
    (base / "given").mkdir()
    return home


def _watched(given: Path) -> list[str]:
    """Return the list in which each write of Python outside a folder is noted from now on."""
    written = list[str]()
    changes = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
    fine = (str(given), "/dev/null", "/dev/shm")  # noqa: S108 - semaphores

    def notice(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            paths = args[:1] if writes else ()
        else:
            # With a descriptor of a folder, which has been opened before.
            inside = any(isinstance(each, int) and each >= 0 for each in args[2 if event == "os.mkdir" else 1 :])
            paths = () if event not in changes or inside else args[1:2] if event == "os.symlink" else args[:2]
        for path in paths:
            if isinstance(path, str | os.PathLike):
                full = os.path.abspath(path)  # noqa: PTH100 - of whatever it is
                if not full.startswith(fine) and "__pycache__" not in full:
                    written.append(f"{event} {full}")

    sys.addaudithook(notice)
    return written


def _tried(family: Family, case: Case, folder: Path, written: list[str]) -> dict[str, Any]:
    (folder / WORK).mkdir(parents=True)
    path = folder / family.file
    path.parent.mkdir(parents=True, exist_ok=True)
    case.put(path)
    written.clear()
    before = state(folder)
    code, said = 0, ""
    try:
        outcome, said = TAKEN, repr(family.read(path, folder))[:500]
    except VmimageError as error:
        outcome, code, said = REFUSED, error.exit_code, error.message
    except Failure as error:
        outcome, code, said = REFUSED, 1, str(error)
    except BaseException:  # noqa: BLE001 - it is what is looked for
        outcome, said = "a traceback", traceback.format_exc()[-3000:]
    left = (
        [f"{name} in its own folder" for name in state(folder).items() ^ before.items()] if outcome == REFUSED else []
    )
    return {"outcome": outcome, "code": code, "said": said, "wrote": left}


def state(folder: Path) -> dict[str, str]:
    """Return what is below a folder, but for that of work: name -> what it is."""
    return dict(_entries(folder))


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    for where, folders, names in os.walk(folder):
        if WORK in folders and Path(where) == folder:
            folders.remove(WORK)
        for name in (*folders, *names):
            path = Path(where, name)
            mode = path.lstat().st_mode
            text = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else str(mode)
            yield str(path), text
