"""The most that dev-env takes from the API server, from programs and from files, and how long it waits for them.

What is larger is refused with a message that names the bound; nothing is cut off silently. These are far above what a
development environment has: whoever meets one has another file, or another machine, than was meant.
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
"""One event of a watch; etcd and kine keep no object of more than some MiB."""
API_SECONDS = 30.0
WATCH_SECONDS = 240
"""After this the API server ends a watch, and the next one begins."""

OUTPUT_BYTES = 64 * MIB
"""What kubectl, helm and crictl answer."""
SAID_BYTES = 64 * KIB
"""What is kept of what a program says while it works: the end of it, where the reason stands."""
PROGRAM_SECONDS = 60.0
HELM_SECONDS = 900.0
"""How long a chart may take to become ready: `dev-env up --timeout`."""
HELM_MORE_SECONDS = 60.0
"""How long helm may take to end after the time that it was given."""
IMAGES_SECONDS = 300.0
END_SECONDS = 10.0
"""How long a program has from SIGTERM to SIGKILL."""

VALUES_BYTES = 1 * MIB
"""A values file. A release cannot keep more: its Secret has 1 MiB at most."""
VALUES_DEPTH = 100
"""How deep the values of a chart may be nested."""
SETTINGS_BYTES = 1 * MIB
"""A file of settings or facts: of k3s, of this machine, of this program."""
CHART_BYTES = 256 * MIB
"""A chart's archive."""

MANIFEST_BYTES = 1 * MIB
"""The table of contents of an archive of images."""
ARCHIVE_SECONDS = 3600.0
"""To find the table of contents of an archive of images: docker writes it last, after many GiB."""
ARCHIVE_MEMBERS = 100_000
"""Files in an archive of images before its table of contents."""

BUNDLE_BYTES = 4 * GIB
"""A bundle for `dev-env update`, and each file in it."""
BUNDLE_MEMBERS = 16
BUNDLE_INDEX_BYTES = 64 * KIB
DOWNLOAD_SECONDS = 3600.0
"""A bundle from a URL; what takes longer is downloaded by other means, and given as a file."""

CHUNK = 1 * MIB


class Readable(Protocol):
    """What gives bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""


def chunks(stream: Readable, most: int, seconds: float, what: str) -> Iterator[bytes]:
    """Yield what a stream gives, to its end.

    Args:
        most: Bytes at most.
        seconds: The time for all of it, and not only for the next byte.
        what: How the stream is called in a message.

    Raises:
        Failure: It gives more, or takes longer.
    """
    left, end = most, time.monotonic() + seconds
    # read1: what has come, and not what fills a chunk; else a slow server would hold us beyond the time.
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
        Failure: It is larger than it may be, or cannot be read.
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
        Failure: It is larger than it may be, no UTF-8, or cannot be read.
    """
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise Failure(f"{path} is no text in UTF-8: {error}", "correct the file") from error


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    unit, word = next(((unit, word) for unit, word in ((GIB, "GiB"), (MIB, "MiB")) if count >= unit), (KIB, "KiB"))
    return f"{count // unit} {word}"
