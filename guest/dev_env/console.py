"""The only place where dev-env prints: what is shown goes through `printable`, and has an end.

Answers go to standard output, all else to standard error. Whether somebody still listens does not decide what is done:
a terminal that is gone, or a pipe that is closed, ends nothing. An answer that finds no room on a disk is an error.
"""

from __future__ import annotations

import errno
import io
import sys
import traceback
from contextlib import suppress
from typing import TextIO

from dev_env.printable import printable, shortened

MOST_ANSWER = 1_000_000
"""Characters of one answer, such as a table."""
NOBODY = (errno.EPIPE, errno.EIO)
"""Who listened has gone: the other end of a pipe, a terminal."""


def say(text: str) -> None:
    """Tell the user what goes on."""
    with suppress(OSError):
        _write(sys.stderr, f"{printable(shortened(text))}\n")


def answer(text: str) -> None:
    """Print what was asked for."""
    _write(sys.stdout, f"{printable(shortened(text, MOST_ANSWER))}\n")


def answer_whole(text: str) -> None:
    """Print a file that was asked for; cut short it would be another one."""
    _write(sys.stdout, printable(text))


def say_again(text: str) -> None:
    """Tell how far something is, on a terminal, in place of what was told last."""
    with suppress(OSError):
        _write(sys.stderr, f"\r{printable(shortened(text)).replace(chr(10), ' ')}\033[K")


def prepare() -> None:
    """Let no character that a terminal's encoding lacks be an error, and an error of this program be shown safely."""
    sys.excepthook = lambda *error: say("".join(traceback.format_exception(*error)))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if error.errno not in NOBODY:
            raise
