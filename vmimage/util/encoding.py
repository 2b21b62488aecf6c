"""UTF-8 for files and terminals, whatever the locale says: this project's files are UTF-8 on every host."""

from __future__ import annotations

import io
import locale
import os
import sys


def use_utf8() -> None:
    """Start this program again in Python's UTF-8 mode where the locale would have it read files as something else."""
    if not sys.flags.utf8_mode and locale.getencoding().lower().replace("-", "") != "utf8":
        # Programs that this one starts have it, too.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - itself
    for stream in (sys.stdout, sys.stderr):
        # PYTHONIOENCODING may leave a terminal that has no letter for everything.
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")
