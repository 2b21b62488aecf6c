"""QEMU's control connection (QMP). Imports little: the bake's snapshot runs in a process of its own, once a step."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping

from qemu.qmp import QMPClient, QMPError

QMP_SECONDS = 30.0


class Monitor:
    """QEMU's control connection (QMP), for callers that are not asynchronous."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._client = QMPClient()
        # A guest brings about events without end, which would all be kept.
        self._client.events.event_filter = self._is_first_write_error

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

    def write_error(self, seconds: float) -> str | None:
        """Listen for some time; returns why a disk of the machine could not be written, once, and else None.

        QEMU gives the reason for people to read; nothing where it gives none.
        """
        try:
            event = self._runner.run(asyncio.wait_for(self._client.events.get(), seconds))
        except TimeoutError:
            return None
        data = event["data"]
        return str(data.get("reason", "")) if isinstance(data, dict) else ""

    def _is_first_write_error(self, event: Mapping[str, object]) -> bool:
        """Source: https://qemu.readthedocs.io/en/latest/interop/qemu-qmp-ref.html (BLOCK_IO_ERROR)"""
        data = event.get("data")
        is_one = event["event"] == "BLOCK_IO_ERROR" and isinstance(data, dict) and data.get("operation") == "write"
        return is_one and not self._client.events.history

    def close(self) -> None:
        """End the connection; QEMU may be gone already."""
        with contextlib.suppress(QMPError, OSError, EOFError):
            self._runner.run(self._client.disconnect())
        self._runner.close()
