"""What answers ssh on this host's loopback, with the host keys that a test gives it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import paramiko
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED


class _Server(paramiko.ServerInterface):
    """Lets everybody in, and answers every command with the same."""

    def __init__(self, answer: bytes, status: int | None) -> None:
        self._answer, self._status = answer, status

    def get_allowed_auths(self, *_: object) -> str:
        return "publickey"

    def check_auth_publickey(self, *_: object) -> int:
        return AUTH_SUCCESSFUL

    def check_channel_request(self, *_: object) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, *_: object) -> bool:
        threading.Thread(target=self._say, args=(channel,), daemon=True).start()
        return True

    def _say(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):  # a client that has heard enough hangs up
            channel.sendall(self._answer)
            if self._status is not None:
                channel.send_exit_status(self._status)
                channel.shutdown_write()


@contextlib.contextmanager
def ssh_server(*keys: paramiko.PKey, port: int = 0, answer: bytes = b"", status: int | None = 0) -> Iterator[int]:
    """Serve ssh for the length of a `with` block; yields the port.

    Args:
        status: The exit status of every command; None for commands that do not end.
    """
    sessions = list[paramiko.Transport]()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            session = paramiko.Transport(connection)
            sessions.append(session)
            for key in keys:
                session.add_server_key(key)
            # With an event it returns at once, whatever becomes of the session.
            session.start_server(threading.Event(), _Server(answer, status))

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for session in sessions:
                session.close()
