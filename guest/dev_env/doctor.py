"""`dev-env doctor`: what is commonly wrong with a machine, and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dev_env import KUBECONFIG, Failure, journal
from dev_env.archives import brought
from dev_env.images import lost, pin, unpinned
from dev_env.load import load
from dev_env.ready import Watch
from dev_env.tools import ended, run
from dev_env.update import recover

LEAST_FREE_BYTES = 2 << 30
LEAST_MEMORY_KIB = 1800 << 10
FIX = "`dev-env doctor --fix`"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """Something that is examined.

    Attributes:
        fault: Returns what is wrong with it, or nothing.
        remedy: What the user can do.
        fix: Does it, if it can be done without asking anybody.
    """

    name: str
    fault: Callable[[], str]
    remedy: str
    fix: Callable[[Report], None] | None = None

    def found(self) -> str:
        """Return what is wrong, or nothing."""
        try:
            return self.fault()
        except Failure as error:
            return (str(error).splitlines() or ["it failed"])[-1]


def checks() -> tuple[Check, ...]:
    """Return all checks, what others need first."""
    return (
        Check("no update was cut off", _cut_off, f"{FIX}, which is `sudo dev-env recover`", recover),
        Check("the service k3s runs", partial(_unit, "k3s.service"), f"{FIX}, `journalctl -u k3s`", _restart("k3s")),
        Check(
            "names are kept up to date",
            partial(_unit, "dev-env-names.service"),
            f"{FIX}, `journalctl -u dev-env-names`",
            _restart("dev-env-names"),
        ),
        Check("you may use the cluster", _kubeconfig, "log in as the user dev"),
        Check("the images that the machine brings are there", _images, FIX, _bring_back),
        Check("nobody removes them", _pins, FIX, lambda _: pin(unpinned())),
        Check(
            "the cluster answers and is ready",
            lambda: Watch().look().waiting,
            "wait a minute; then `journalctl -u k3s`",
        ),
        Check(
            "the disk has room", _disk, "remove what is large: `dev-env images prune`, `sudo du -xh / | sort -h | tail`"
        ),
        Check("there is enough memory", _memory, "give the machine 4 GiB or more"),
    )


def examine(report: Report, *, fix: bool) -> Iterator[tuple[Check, str]]:
    """Yield each check and what is wrong, or nothing.

    Args:
        report: Told what is being mended.
        fix: Mend what can be mended, and look again.
    """
    for check in checks():
        fault = check.found()
        if fault and fix and check.fix:
            report(f"mending: {check.name}: {fault}")
            try:
                check.fix(report)
            except Failure as error:
                report(str(error))
            fault = check.found()
        yield check, fault


def _cut_off() -> str:
    # One that runs has the journal too; it holds the lock until it ends.
    return f"{journal.path()} is there" if journal.found() else ""


def _unit(unit: str) -> str:
    done = ended(["systemctl", "is-active", unit])
    return "" if done.status == 0 else f"{unit} is {done.output.strip()}"


def _restart(unit: str) -> Callable[[Report], None]:
    def restart(_: Report) -> None:
        # Without waiting: systemd waits for k3s as long as it takes.
        run(["sudo", "systemctl", "restart", "--no-block", unit], shown=True)

    return restart


def _kubeconfig() -> str:
    try:
        KUBECONFIG.read_bytes()
    except OSError as error:
        return f"{KUBECONFIG}: {error.strerror}"
    return ""


def _images() -> str:
    gone = lost()
    return f"gone: {', '.join(gone)}" if gone else ""


def _bring_back(report: Report) -> None:
    archives = brought()
    load(sorted({archives[name] for name in lost()}), report)


def _pins() -> str:
    loose = unpinned()
    return f"not pinned: {', '.join(loose)}" if loose else ""


def _disk() -> str:
    free = shutil.disk_usage("/").free
    return "" if free >= LEAST_FREE_BYTES else f"{free >> 20} MiB are free"


def _memory() -> str:
    total = int(Path("/proc/meminfo").read_text().split()[1])
    return "" if total >= LEAST_MEMORY_KIB else f"the machine has {total >> 10} MiB"
