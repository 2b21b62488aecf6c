"""Bounds: how much dev-env reads from the API server, from programs and from files, and how long it waits for them.

Anything larger is refused, with a message that names the bound. Nothing is truncated silently. The bounds are far above
the needs of a development environment: a user who meets one probably has the wrong file or the wrong machine.
docs/dev-env.md lists those that a user may meet, and the way out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from dev_env import Failure

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

API_BYTES = 64 * MIB
"""One answer of the API server: some ten thousand objects."""
EVENT_BYTES = 16 * MIB
"""One event of a watch; etcd and kine refuse objects of more than some MiB."""
API_SECONDS = 30.0
WATCH_SECONDS = 240
"""After this time the API server ends a watch, and dev-env begins the next one."""

OUTPUT_BYTES = 64 * MIB
"""Output of kubectl, helm and crictl."""
SAID_BYTES = 64 * KIB
"""Messages of a program that is working. Only the end is kept, since it has the reason of a failure."""
PROGRAM_SECONDS = 300.0
"""`helm list` takes over a minute where the machine is emulated and its cluster is still busy."""
HELM_SECONDS = 900.0
"""How long a chart may take to become ready: `dev-env up --timeout`."""
HELM_MORE_SECONDS = 60.0
"""How long helm may take to end, after its own time is over."""
IMAGES_SECONDS = 300.0
END_SECONDS = 10.0
"""How long a program has from SIGTERM to SIGKILL."""

VALUES_BYTES = 1 * MIB
"""A values file. A release cannot hold more: its Secret has 1 MiB at most."""
VALUES_DEPTH = 100
"""How deep the values of a chart may be nested."""
SETTINGS_BYTES = 1 * MIB
"""A file of settings or facts of k3s, of this machine or of dev-env."""
FORWARDS_BYTES = 4 * KIB
"""What is told of ports that lead here: 256 of a machine's own, each by itself, take half of it."""
CHART_BYTES = 256 * MIB
"""A chart's archive."""

MANIFEST_BYTES = 1 * MIB
"""The table of contents of an archive of images."""
ARCHIVE_SECONDS = 3600.0
"""To find the table of contents in an archive of images. docker writes it last, after many GiB."""
ARCHIVE_MEMBERS = 100_000
"""Files in an archive of images before its table of contents."""

BUNDLE_BYTES = 4 * GIB
"""A bundle for `dev-env update`, and each file in it."""
BUNDLE_MEMBERS = 16
BUNDLE_INDEX_BYTES = 64 * KIB
DOWNLOAD_SECONDS = 3600.0
"""Download of a bundle. If it takes longer, the user downloads it in another way and gives the file."""

CHUNK = 1 * MIB


class Readable(Protocol):
    """What gives bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""


def chunks(stream: Readable, most: int, seconds: float, what: str) -> Iterator[bytes]:
    """Yield what a stream gives, to its end.

    Args:
        most: Largest number of bytes.
        seconds: Time for the whole stream, not only for the next byte.
        what: Name of the stream in a message.

    Raises:
        Failure: The stream gives more bytes, or takes longer.
    """
    left, end = most, time.monotonic() + seconds
    # read1 returns what has arrived. `read` waits for a whole chunk: a slow server would hold us beyond the time.
    read = getattr(stream, "read1", stream.read)
    while data := read(min(CHUNK, left + 1)):
        left -= len(data)
        if left < 0:
            raise Failure(f"{what} has more than {size(most)}", "is it what was meant?")
        yield data
        if time.monotonic() > end:
            raise Failure(f"{what} did not come within {seconds:.0f} s", "`dev-env doctor`")


def read_bytes(path: Path, most: int) -> bytes:
    """Return what is in a file.

    Raises:
        Failure: The file is too large, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name with NUL
        raise Failure(f"{path} is no name of a file: {error}") from error
    if len(data) > most:
        raise Failure(f"{path} has more than {size(most)}", "is it the file that was meant?")
    return data


def read_text(path: Path, most: int = SETTINGS_BYTES) -> str:
    """Return the text in a file.

    Raises:
        Failure: The file is too large, not UTF-8, or cannot be read.
    """
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is no text in UTF-8: {error}", "correct the file") from error


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    unit, word = next(((unit, word) for unit, word in ((GIB, "GiB"), (MIB, "MiB")) if count >= unit), (KIB, "KiB"))
    return f"{count // unit} {word}"
