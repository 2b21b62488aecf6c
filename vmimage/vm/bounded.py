"""An ssh session with a machine that may send whatever it likes: paramiko alone bounds little of it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import paramiko
from paramiko.buffered_pipe import BufferedPipe
from paramiko.packet import Packetizer

from vmimage.vm.limits import BANNER_BYTES, COMMAND_SECONDS, PACKET_BYTES, UNREAD_BYTES, UNSENT_SECONDS


class _Sending:
    """A socket to a machine that may read nothing of what it makes us answer: paramiko would send for ever.

    Who sends holds a lock that all need who send, so nobody else would come to an end either.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._behind_since: float | None = None

    def send(self, data: bytes) -> int:
        """Send some bytes.

        Raises:
            TimeoutError: There is no room for them; paramiko tries again.
            OSError: There has been none for too long; the session ends.
        """
        try:
            sent = self._connection.send(data)
        except TimeoutError:
            now = time.monotonic()
            since = self._behind_since = self._behind_since or now
            if now - since > UNSENT_SECONDS:
                raise OSError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
            raise
        self._behind_since = None
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


# Paramiko logs a traceback for every attempt that a booting guest does not answer.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class _Packets(Packetizer):
    _greeting = 0

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(_Sending(connection))  # type: ignore[arg-type]  # it sends, receives and closes

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Read a packet, or a part of it.

        Raises:
            SSHException: It is longer than those of ssh.
        """
        if n > PACKET_BYTES:
            raise paramiko.SSHException(f"it sends a packet of {n} bytes")
        return super().read_all(n, check_rekey)

    def _read_timeout(self, timeout: float) -> bytes:
        """Read more of the lines before the first packet, which nothing else is read by."""
        data: bytes = super()._read_timeout(timeout)  # type: ignore[misc]
        self._greeting += len(data)
        if self._greeting > BANNER_BYTES:
            raise paramiko.SSHException("it greets without end")
        return data


class _Unread(BufferedPipe):  # type: ignore[type-arg]  # generic in its stubs alone
    def feed(self, data: bytes) -> None:
        """Keep what nobody has read yet.

        Raises:
            SSHException: It is more than an honest server sends before it is asked for more; the session ends.
        """
        if len(self) + len(data) > UNREAD_BYTES:
            raise paramiko.SSHException("it sends more than it may")
        super().feed(data)


class _Transport(paramiko.Transport):
    def get_exception(self) -> Exception | None:
        """Return what ended the session; what paramiko stumbles over in a packet is the sender's fault, too."""
        error = super().get_exception()
        if error is None or isinstance(error, OSError | EOFError | paramiko.SSHException):
            return error
        return paramiko.SSHException(f"it sends a packet that is none ({error or type(error).__name__})")


def transport(connection: Any, /, **options: Any) -> paramiko.Transport:
    """Return a session over a socket, not begun yet; what paramiko.SSHClient calls a transport factory."""
    return _Transport(connection, packetizer_class=_Packets, **options)


def start(session: paramiko.Transport, command: str, *, seconds: float = COMMAND_SECONDS) -> paramiko.Channel:
    """Start a command in the machine.

    Args:
        seconds: How long the machine may take to begin.

    Raises:
        OSError, paramiko.SSHException: It cannot be started.
    """
    channel = session.open_session(timeout=seconds)
    channel.in_buffer, channel.in_stderr_buffer = _Unread(), _Unread()
    # Paramiko waits for the answer for ever.
    overdue = threading.Timer(seconds, _close, (channel,))
    overdue.daemon = True
    overdue.start()
    try:
        channel.exec_command(command)
    finally:
        overdue.cancel()
    return channel


def _close(channel: paramiko.Channel) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # the whole session has ended meanwhile
        channel.close()


def read_all(channel: paramiko.Channel, receive: Callable[[int], bytes], *, limit: int, end: float) -> bytes:
    """Read what a command says until it ends.

    Args:
        limit: Bytes; one more is read of what is longer.
        end: When to give up, by the monotonic clock.

    Raises:
        TimeoutError: It goes on.
    """
    text = bytearray()
    while len(text) <= limit:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("it does not end")
        channel.settimeout(left)
        part = receive(min(4096, limit + 1 - len(text)))
        if not part:
            break
        text += part
    return bytes(text)


def exit_status(channel: paramiko.Channel, seconds: float) -> int:
    """Wait for the end of a command; returns its exit status.

    Raises:
        TimeoutError: It takes longer.
    """
    if not channel.status_event.wait(seconds):
        raise TimeoutError(f"a command in the machine did not end within {seconds:.0f} s")
    return channel.recv_exit_status()
