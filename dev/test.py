"""`invoke test`: the project's own tests, tier by tier."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from invoke.exceptions import Exit

from vmimage import PROJECT
from vmimage.commands.session import errors_shown
from vmimage.util.console import Console
from vmimage.util.errors import InputError

# Those of one file share what is slow to make, so a file stays in one process. Files are taken in the order that is
# given here, not those with most tests first: a slow one that comes last keeps one process busy, and the others idle.
PARALLEL = ("--numprocesses=auto", "--dist=loadfile", "--no-loadscope-reorder")
FUZZ_TESTS = ("tests/host/test_fuzz_formats.py", "tests/unit", "-m", "host or hypothesis")
MOST_FUZZ_MINUTES = 24 * 60
NO_TESTS = 5
"""pytest's exit status when it found no test to run."""


def run_tests(
    *,
    unit: bool = False,
    host: bool = False,
    keyword: str = "",
    vagrant: bool = False,
    real_k3s: str = "",
    k3s_version: str = "",
) -> None:
    """Run the tests of this project; each tier though one before it failed.

    Args:
        unit: Only tests/unit.
        host: Only tests/unit and tests/host.
        keyword: Only tests that match.
        real_k3s: A mirror of k3s's files, instead of the stand-in.
        k3s_version: The version to take from there, if not the pinned one.

    Raises:
        Exit: A test failed, with pytest's exit status.
    """
    with errors_shown(Console()):
        if k3s_version and not real_k3s:
            raise InputError("--k3s-version is for --real-k3s", hint="invoke test --real-k3s MIRROR --k3s-version …")
    environment = dict(os.environ)
    if real_k3s:
        environment["VMIMAGE_TEST_REAL_K3S"] = real_k3s if "://" in real_k3s else str(Path(real_k3s).absolute())
        environment["VMIMAGE_TEST_K3S_VERSION"] = k3s_version
    if vagrant:
        environment["VMIMAGE_TEST_VAGRANT"] = "1"
    runs = [[*PARALLEL, "tests/unit"] if unit else [*PARALLEL, "tests/host", "tests/unit"]]
    if not (unit or host):
        runs.append(["tests/e2e"])
    select = ["-k", keyword] if keyword else []
    pytest = [sys.executable, "-m", "pytest", *select]
    statuses = [subprocess.run([*pytest, *run], cwd=PROJECT, env=environment, check=False).returncode for run in runs]
    bad = [status for status in statuses if status not in (0, NO_TESTS)]
    if bad or all(statuses):
        raise Exit(code=(bad or statuses)[0])


def run_fuzz(minutes: float) -> None:
    """Try the readers of foreign files with mutated ones, others in every run, and what Hypothesis feeds in tests/unit.

    Raises:
        Exit: One was neither taken nor refused, with pytest's exit status; the mutation is shown.
    """
    with errors_shown(Console()):
        if not 0 < minutes < MOST_FUZZ_MINUTES:
            raise InputError(f"--minutes {minutes}: not so many", hint=f"up to {MOST_FUZZ_MINUTES}")
    argv = [sys.executable, "-m", "pytest", *FUZZ_TESTS]
    environment = {**os.environ, "VMIMAGE_FUZZ_MINUTES": str(minutes)}
    status = subprocess.run(argv, cwd=PROJECT, env=environment, check=False).returncode
    if status:
        raise Exit(code=status)
