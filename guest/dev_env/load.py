"""Loading container images from files, with progress: containerd itself says nothing for minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dev_env import Failure
from dev_env.archives import names_in
from dev_env.bounds import SAID_BYTES
from dev_env.console import say, say_again
from dev_env.images import CTR, digests, pin
from dev_env.tools import show, started

CHUNK = 1 << 20
SAY_EVERY_SECONDS = 10.0
Report = Callable[[str], None]


def load(files: Sequence[Path], report: Report) -> list[str]:
    """Load image archives (of `docker save`, also compressed) for pods to use, and pin them; returns their names.

    Raises:
        Failure: A file is not there, or is no image archive.
    """
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        named = f"there is no file {', '.join(missing)}" if missing else "no file is named"
        raise Failure(named, "`docker save NAME -o FILE` makes one, on any computer with docker")
    loaded: list[str] = []
    for file in files:
        before = digests()
        bring(file, report)
        after = digests()
        changed = [name for name, digest in after.items() if before.get(name) != digest]
        # If all of it was there already, the archive says what that is: it need not be pinned yet.
        found = changed or [name for name in names_in(file) if name in after]
        pin(found)
        loaded += found
    return sorted(loaded)


def bring(file: Path, report: Report) -> None:
    """Stream an archive into containerd, and tell how far it is.

    Raises:
        Failure: containerd does not take it.
    """
    show([*CTR, "import", str(file)])
    with file.open("rb") as source, tempfile.TemporaryFile() as said:
        total, sent = file.stat().st_size, [0]
        with started([*CTR, "import", "-"], stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT) as process:
            feeder = threading.Thread(target=_feed, args=(source, process, sent), daemon=True)
            feeder.start()
            with _progress(report) as tell:
                while process.poll() is None:
                    tell(f"{'reading' if sent[0] < total else 'unpacking'} {file.name}: "
                         f"{sent[0] >> 20} of {total >> 20} MiB")  # fmt: skip
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=1)
            feeder.join()
        if process.returncode:
            said.seek(max(0, os.fstat(said.fileno()).st_size - SAID_BYTES))
            text = said.read().decode(errors="replace").strip()
            raise Failure(f"{file} could not be loaded:\n{text}", "is it an archive of `docker save`?")


def _feed(source: IO[bytes], process: subprocess.Popen[bytes], sent: list[int]) -> None:
    """Write a file to a process's standard input, and count the bytes."""
    assert process.stdin  # noqa: S101 - it is a pipe
    # When the other end has gone, its exit status says why.
    with suppress(BrokenPipeError), process.stdin as sink:
        while data := source.read(CHUNK):
            sink.write(data)
            sent[0] += len(data)


@contextmanager
def _progress(report: Report) -> Iterator[Report]:
    """Yield what tells how far something is: on a terminal again and again in one line, else now and then."""
    begun, terminal = time.monotonic(), sys.stderr.isatty()
    said_at = begun - SAY_EVERY_SECONDS

    def tell(text: str) -> None:
        nonlocal said_at
        now = time.monotonic()
        line = f"{text}, {now - begun:.0f} s"
        if terminal:
            say_again(line)
        elif now - said_at >= SAY_EVERY_SECONDS:
            said_at = now
            report(line)

    try:
        yield tell
    finally:
        if terminal:
            say("")
