"""The file of a machine's serial console, which a guest may fill without end."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 64 << 20
"""Of such a file; kept are then the last KEPT_BYTES."""
KEPT_BYTES = 1 << 20
LOOK_EVERY_SECONDS = 1.0
CUT = b"[cut: this machine said more than is kept]\n"


@contextlib.contextmanager
def bounded(*paths: Path) -> Iterator[None]:
    """Keep files small to which a program appends, in the length of a `with` block.

    Args:
        paths: Files that it has opened for appending; they may not be there yet.
    """
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(LOOK_EVERY_SECONDS):
            for path in paths:
                with contextlib.suppress(OSError):
                    cut(path)

    thread = threading.Thread(target=work, name="serial", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                cut(path)


def cut(path: Path) -> None:
    """Leave the end of a file that is too large, behind a line that says so.

    What is appended in that moment may be lost.
    """
    with path.open("r+b") as file:
        if file.seek(0, os.SEEK_END) <= MOST_BYTES:
            return
        file.seek(-KEPT_BYTES, os.SEEK_END)
        kept = file.read(KEPT_BYTES)
        file.truncate(0)
        file.seek(0)
        file.write(CUT + kept)


def was_cut(path: Path) -> bool:
    """Tell whether something of a file is missing."""
    with path.open("rb") as file:
        return file.read(len(CUT)) == CUT
