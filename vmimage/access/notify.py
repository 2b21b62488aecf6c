"""Tell programs in the guest of files that change on the host.

The kernel of the guest knows only what is done through its own mount, so each changed file is touched there in a way
that does nothing to it: it is given to the owner that it has, and opened for writing and closed. That gives IN_ATTRIB
and IN_CLOSE_WRITE, on the file and on its directory. Setting its mode or times again would do as well for the guest,
but undo a change made here in the same moment.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
from watchfiles import watch

# The guest's own writes come back as changes on the host, this much later at most.
ECHO_SECONDS = 1.0
DEBOUNCE_MILLISECONDS = 100
REMEMBERED = 4096

TOUCH = (Path(__file__).parent / "in_guest" / "touch.py").read_text()


def touch_command(target: str) -> str:
    """Return the command that touches in the guest what it reads the names of."""
    return f"exec python3 -c {shlex.quote(TOUCH)} {shlex.quote(target)}"


class Notifier:
    """Watches a directory."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._written: dict[bytes, float] = {}

    def by_guest(self, path: bytes) -> None:
        """Remember that a change came from the guest, where everybody knows of it."""
        if len(self._written) >= REMEMBERED:
            self._written.clear()
        self._written[path.strip(b"/")] = time.monotonic()

    @contextlib.contextmanager
    def touching(self, channel: paramiko.Channel) -> Iterator[None]:
        """Watch for the length of a `with` block.

        Args:
            channel: Runs the command that touches.
        """
        stop = threading.Event()

        def work() -> None:
            with contextlib.suppress(OSError):  # the session is gone, which others notice too
                for changes in watch(
                    self._source, debounce=DEBOUNCE_MILLISECONDS, stop_event=stop, raise_interrupt=False
                ):
                    names = {os.fsencode(os.path.relpath(path, self._source)) for _, path in changes}
                    channel.sendall(b"".join(name + b"\0" for name in sorted(names) if not self._echo(name)))

        thread = threading.Thread(target=work, name="notify", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            channel.close()
            thread.join()

    def _echo(self, name: bytes) -> bool:
        return time.monotonic() - self._written.get(name, -ECHO_SECONDS) < ECHO_SECONDS
