"""`invoke diff --deep`: diffoscope looks into the files that differ."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from vmimage.commands.diff.contents import Contents
from vmimage.disk.ext4 import Node, tar_stream
from vmimage.disk.raw import read_range
from vmimage.util.confine import Limits, run_confined
from vmimage.util.errors import HostError, VerifyError

PROGRAM = "diffoscope"
MOST_DEEP_BYTES = 4 << 30
"""Of the files of an image that are looked into."""
REPORT = Limits(seconds=3600.0, output=32 << 20, open_files=1024)
MOST_REPORT_BYTES = 16 << 20
DIFFERENT = 1
"""Its exit status, when it found something."""


def require_diffoscope() -> None:
    """Check that there is diffoscope.

    Raises:
        HostError: There is none.
    """
    if not shutil.which(PROGRAM):
        hint = "apt-get install diffoscope-minimal, or compare without --deep"
        raise HostError(f"--deep needs {PROGRAM}, which is not installed", hint=hint)


def deep_report(sides: Sequence[tuple[Contents, Sequence[Node]]], work: Path) -> str:
    """Return what diffoscope says of the files that differ; they are given to it as two archives.

    Args:
        sides: Image, and its nodes that differ.
        work: A new folder.

    Raises:
        VerifyError: They are too large, or it failed.
    """
    work.mkdir()
    archives = []
    for name, (contents, nodes) in zip(("a", "b"), sides, strict=True):
        size = sum(node.size for node in nodes if stat.S_ISREG(node.mode))
        if size > MOST_DEEP_BYTES:
            raise VerifyError(
                f"the files that differ have {size} bytes in {name.upper()}, more than {MOST_DEEP_BYTES >> 30} GiB",
                hint="compare without --deep",
            )
        archives.append(work / f"{name}.tar")
        with contents.disk.open("rb") as disk, archives[-1].open("wb") as file:
            fd = disk.fileno()
            file.writelines(tar_stream(nodes, lambda start, end, fd=fd: read_range(fd, start, end)))  # type: ignore[misc]
    # What it unpacks goes into the folder, which is all that it may write to.
    argv: list[str | Path] = ["env", f"TMPDIR={work}", PROGRAM, "--text", "-"]
    argv += [f"--max-text-report-size={MOST_REPORT_BYTES}", *archives]
    done = run_confined(argv, writable=[work], limits=REPORT, check=False, error=VerifyError)
    if done.returncode not in (0, DIFFERENT):
        raise VerifyError(f"{PROGRAM} failed with exit status {done.returncode}: {done.output[-2000:].strip()}")
    return done.output
