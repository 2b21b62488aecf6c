"""A client of our SFTP service that also asks what no well-behaved client asks."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import paramiko
from paramiko import sftp
from paramiko.message import Message

from vmimage.access.confined import Folder
from vmimage.access.sftp import Service

OWNER = (1000, 1001)


class Client(paramiko.SFTPClient):
    """Also what paramiko's client does not offer."""

    def _log(self, *_: object) -> None:
        """Say nothing: it would ask the socket for the name of a channel."""

    def ask(self, kind: int, *parts: bytes | int) -> tuple[int, Message]:
        """Send a request as it is; returns the kind of the reply, and the rest of it."""
        request = struct.pack(">I", 7) + b"".join(
            struct.pack(">I", part) if isinstance(part, int) else struct.pack(">I", len(part)) + part for part in parts
        )
        message = Message()
        message.add_bytes(request)
        self._send_packet(kind, message)  # type: ignore[attr-defined]
        reply, data = self._read_packet()  # type: ignore[attr-defined]
        return reply, Message(data[4:])

    def status(self, kind: int, *parts: bytes | int) -> int:
        """Send a request that is answered by a status."""
        reply, message = self.ask(kind, *parts)
        assert reply == sftp.CMD_STATUS
        return message.get_int()


@contextlib.contextmanager
def served(folder: Folder) -> Iterator[tuple[Client, list[bytes]]]:
    """Serve a folder; yields a client, and the paths that were changed by it."""
    ours, theirs = socket.socketpair()
    changed: list[bytes] = []
    service = Service(folder, ours, owner=OWNER, on_change=changed.append)
    thread = threading.Thread(target=service.serve)
    thread.start()
    with contextlib.closing(folder), ours, theirs:
        try:
            yield Client(theirs), changed  # type: ignore[arg-type]
        finally:
            theirs.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=10)
            assert not thread.is_alive()
