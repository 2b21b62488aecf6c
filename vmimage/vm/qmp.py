"""QEMU's control connection (QMP). Imports little: the bake's snapshot runs in a process of its own, once a step."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from qemu.qmp import QMPClient, QMPError

QMP_SECONDS = 30.0


class Monitor:
    """QEMU's control connection (QMP), for callers that are not asynchronous."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._client = QMPClient()

    def connect(self, connection: socket.socket | str) -> None:
        """Greet and negotiate on a connected socket, or on one that is named by its path.

        Raises:
            TimeoutError, ConnectError: QEMU does not answer.
        """
        self._runner.run(asyncio.wait_for(self._client.connect(connection), QMP_SECONDS))

    def command(self, name: str, **arguments: object) -> object:
        """Give a command and return its answer.

        Raises:
            ExecuteError: QEMU refuses it.
            TimeoutError, QMPError: QEMU does not answer.
        """
        answer: object = self._runner.run(asyncio.wait_for(self._client.execute(name, arguments), QMP_SECONDS))
        return answer

    def close(self) -> None:
        """End the connection; QEMU may be gone already."""
        with contextlib.suppress(QMPError, OSError, EOFError):
            self._runner.run(self._client.disconnect())
        self._runner.close()
