"""What answers ssh on this host's loopback, with the host keys that a test gives it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED


class _Server(paramiko.ServerInterface):
    """Lets in who has one of the keys, and answers every command with the same."""

    def __init__(
        self,
        answer: bytes,
        status: int | None,
        errors: bytes,
        allowed: Collection[bytes] | None,
        work: Callable[[paramiko.Channel, bytes], object] | None,
    ) -> None:
        self._answer, self._status, self._errors, self._allowed, self._work = answer, status, errors, allowed, work

    def get_allowed_auths(self, *_: object) -> str:
        return "publickey"

    def check_auth_publickey(self, _user: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL if self._allowed is None or key.asbytes() in self._allowed else AUTH_FAILED

    def check_channel_request(self, *_: object) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if command == b"take your time":
            time.sleep(1)
        threading.Thread(target=self._say, args=(channel, command), daemon=True).start()
        return True

    def _say(self, channel: paramiko.Channel, command: bytes) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # a client that has heard enough hangs up
            if self._work:
                self._work(channel, command)
                return
            channel.sendall(self._answer)
            channel.sendall_stderr(self._errors)
            if self._status is not None:
                channel.send_exit_status(self._status)
                channel.shutdown_write()


@contextlib.contextmanager
def ssh_server(
    *keys: paramiko.PKey,
    port: int = 0,
    answer: bytes = b"",
    status: int | None = 0,
    errors: bytes = b"",
    allowed: Collection[bytes] | None = None,
    work: Callable[[paramiko.Channel, bytes], object] | None = None,
) -> Iterator[int]:
    """Serve ssh for the length of a `with` block; yields the port.

    Args:
        status: The exit status of every command; None for commands that do not end.
        errors: What every command says on standard error.
        allowed: The public keys that are let in; all when not given.
        work: Does what a command does, and ends it; then the same is not said to every one.
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
            session.start_server(threading.Event(), _Server(answer, status, errors, allowed, work))

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for session in sessions:
                # It would notice a tenth of a second later.
                with contextlib.suppress(OSError):
                    session.sock.shutdown(socket.SHUT_RDWR)
                session.close()
