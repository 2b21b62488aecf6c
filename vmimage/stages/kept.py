"""What --keep-failed leaves: the disk of a machine that failed, and a script that starts it again with a way in."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from vmimage import PROJECT
from vmimage.util.render import render
from vmimage.util.run import run

DISK = "disk.qcow2"
ENTER = "enter"
SCRIPT = PROJECT / "templates" / "enter.sh.j2"


def keep_disk(disk: Path, beneath: tuple[Path, str], folder: Path) -> Path:
    """Move the file that a machine wrote to into a folder; returns where it is.

    Args:
        beneath: The disk that it stands on, and its format.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / DISK
    shutil.move(disk, kept)
    run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", beneath[1], "-b", beneath[0], kept])
    return kept


def write_enter(folder: Path, command: Sequence[str | Path], title: str, comments: Sequence[str]) -> Path:
    """Write the script that starts what is kept in a folder; returns its path."""
    script = folder / ENTER
    values = {"title": title, "comments": comments, "command": shlex.join(map(str, command))}
    script.write_text(render(SCRIPT, values))
    script.chmod(0o755)
    return script
