"""The host keys that a machine of `invoke run` tells on its serial console, which nobody else can write to.

The guest prints them several times at every boot, since the kernel may print into a line. The guest may print anything:
text counts as a key only if it parses as one, and only a bounded part of the console is read.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import paramiko

from vmimage.access.known_hosts import parse_key, record
from vmimage.util.console import Console
from vmimage.util.errors import VmimageError

LINE = re.compile(rb"vmimage-host-key (ssh-ed25519|ecdsa-sha2-nistp256) ([A-Za-z0-9+/]{20,200}={0,2})")
LINE_BYTES = 512
LOOK_EVERY_SECONDS = 0.5
# A boot writes less than this, all in all. Of a guest that writes more at once, the end is read.
WINDOW_BYTES = 1 << 18
CANDIDATES = 64


def told_keys(text: bytes) -> dict[str, paramiko.PKey]:
    """Return the keys in a piece of a console, the last one of each kind; pure."""
    found = {}
    for match in deque(LINE.finditer(text), maxlen=CANDIDATES):
        kind = match[1].decode()
        key = parse_key(kind, match[2].decode())
        if key:
            found[kind] = key
    return found


class Follower:
    """Reads a console while it is written."""

    def __init__(self, serial: Path) -> None:
        self._serial = serial
        self._position = 0
        self._rest = b""
        self.keys: dict[str, paramiko.PKey] = {}

    def read(self) -> bool:
        """Read what is new; returns whether keys were told, also those that were known before."""
        with self._serial.open("rb") as file:
            end = file.seek(0, 2)
            # It was cut, since a guest may fill it without end.
            self._position = self._position if self._position <= end else 0
            first = max(self._position, end - WINDOW_BYTES)
            file.seek(first)
            text = (self._rest if first == self._position else b"") + file.read(WINDOW_BYTES)
            self._position = file.tell()
        self._rest = text[-LINE_BYTES:]
        found = told_keys(text)
        self.keys |= found
        return bool(found)


@contextlib.contextmanager
def host_keys_recorded(serial: Path, known_hosts: Path, name: str, console: Console) -> Iterator[None]:
    """Record the keys that a machine prints during a `with` block; after a reboot, those of the new boot.

    Args:
        serial: The file of the machine's console.
        name: The machine's address, as in the file of known hosts.
    """
    stop = threading.Event()

    def work() -> None:
        follower = Follower(serial)
        stopped = False
        try:
            while not stopped:
                stopped = stop.wait(LOOK_EVERY_SECONDS)
                keys = list(follower.keys.values()) if follower.read() else []
                if keys and record(known_hosts, name, keys):
                    console.event("host-keys", address=name, keys={key.get_name(): key.fingerprint for key in keys})
        except (OSError, VmimageError) as error:
            console.say(f"the host keys of the machine stay unknown, `invoke share` will ask for them: {error}")

    thread = threading.Thread(target=work, name="host-keys", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
