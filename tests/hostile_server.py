"""A server that answers whatever bytes a test wants, as slowly as it wants."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

Answer = bytes | Callable[[socket.socket], None]


@dataclass
class Hostile:
    """Where it answers, and what it was asked."""

    port: int
    asked: list[bytes] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def drip(self, start: bytes, seconds: float = 0.1) -> Callable[[socket.socket], None]:
        """Return an answer that begins with `start` and goes on byte by byte."""

        def answer(connection: socket.socket) -> None:
            connection.sendall(start)
            while not self.ended.wait(seconds):
                connection.sendall(b"x")

        return answer

    def flood(self, start: bytes) -> Callable[[socket.socket], None]:
        """Return an answer that never ends."""

        def answer(connection: socket.socket) -> None:
            connection.sendall(start)
            while not self.ended.is_set():
                connection.sendall(bytes(1 << 20))

        return answer


@contextlib.contextmanager
def hostile(answers: Callable[[Hostile], Sequence[Answer]], context: ssl.SSLContext | None = None) -> Iterator[Hostile]:
    """Answer one request after the other; the last answer serves all that follow."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Hostile(listener.getsockname()[1])
    left = list(answers(server))

    def serve(connection: socket.socket, answer: Answer) -> None:
        with contextlib.suppress(OSError), connection:
            talk = context.wrap_socket(connection, server_side=True) if context else connection
            with talk:
                server.asked.append(talk.recv(1 << 16))
                answer(talk) if callable(answer) else talk.sendall(answer)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                answer = left.pop(0) if len(left) > 1 else left[0]
                threading.Thread(target=serve, args=(connection, answer), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        # Closed alone, it would wait for connections for ever.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def ends_within(seconds: float, end: Callable[[], bool]) -> bool:
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not end() and time.monotonic() < until:
        time.sleep(0.02)
    return end()
