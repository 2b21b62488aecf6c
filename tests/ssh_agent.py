"""An ssh agent in this process: it holds keys, and signs with them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko

FAILURE, LIST, KEYS, SIGNED = 5, 11, 12, 14


@contextlib.contextmanager
def ssh_agent(path: Path, *keys: paramiko.PKey, more: tuple[bytes, ...] = ()) -> Iterator[str]:
    """Serve at a socket for the length of a `with` block; yields its path.

    Args:
        more: Public keys that it says it has.
    """

    def string(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    def answer(request: paramiko.Message) -> bytes:
        if request.get_byte() == bytes([LIST]):
            blobs = [*(key.asbytes() for key in keys), *more]
            return struct.pack(">BI", KEYS, len(blobs)) + b"".join(string(blob) + string(b"held") for blob in blobs)
        blob, data = request.get_binary(), request.get_binary()
        signed = [key.sign_ssh_data(data).asbytes() for key in keys if key.asbytes() == blob]
        return bytes([SIGNED]) + string(signed[0]) if signed else bytes([FAILURE])

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError, struct.error):
                    while True:
                        (length,) = struct.unpack(">I", connection.recv(4))
                        connection.sendall(string(answer(paramiko.Message(connection.recv(length)))))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield str(path)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
