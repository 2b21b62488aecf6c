"""`invoke test`: the project's own tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vmimage import PROJECT
from vmimage.commands.session import errors_shown
from vmimage.util.console import Console
from vmimage.util.errors import InputError


def run_tests(*, unit: bool, keyword: str, vagrant: bool, real_k3s: str, k3s_version: str) -> None:
    """Become pytest, whose exit code is then ours.

    Args:
        real_k3s: A mirror of k3s's files, instead of the stand-in.
        k3s_version: The version to take from there, if not the pinned one.
    """
    with errors_shown(Console()):
        if k3s_version and not real_k3s:
            raise InputError("--k3s-version is for --real-k3s", hint="invoke test --real-k3s MIRROR --k3s-version …")
    folders = ["tests/unit"] if unit else ["tests/unit", "tests/e2e"]
    select = ["-k", keyword] if keyword else []
    if real_k3s:
        os.environ["VMIMAGE_TEST_REAL_K3S"] = real_k3s if "://" in real_k3s else str(Path(real_k3s).absolute())
        os.environ["VMIMAGE_TEST_K3S_VERSION"] = k3s_version
    if vagrant:
        os.environ["VMIMAGE_TEST_VAGRANT"] = "1"
    os.chdir(PROJECT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *folders, *select])  # noqa: S606 - see above
