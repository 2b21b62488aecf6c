"""What QEMU tells of a machine by itself, from a stand-in that says what QEMU's documentation says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from vmimage.commands.run_image import unwritten
from vmimage.util.run import orderly_signals
from vmimage.vm.machine import Machine
from vmimage.vm.qmp import Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}
FULL = "No space left on device"


def io_error(operation: str = "write", **more: object) -> dict[str, object]:
    """Return the event of an I/O error that was reported to the guest, as with `werror=report`."""
    data = {"device": "root", "node-name": "#block1", "operation": operation, "action": "report", "nospace": False}
    return event("BLOCK_IO_ERROR", **data, qom_path="/machine/peripheral-anon/device[3]", **more)


def event(name: str, **data: object) -> dict[str, object]:
    return {"timestamp": {"seconds": 1795860000, "microseconds": 1}, "event": name, "data": data}


class Process:
    """A QEMU that runs for a time."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def poll(self) -> int | None:
        return self.wait() if time.monotonic() > self._ends else None

    def wait(self) -> int:
        return 7


@contextlib.contextmanager
def machine(events: Sequence[dict[str, Any]], *, seconds: float = 0.3) -> Iterator[Machine]:
    """Yield a machine that tells of these events as soon as it is connected to."""
    ours, theirs = socket.socketpair()

    def tell() -> None:
        with contextlib.suppress(OSError):
            theirs.sendall(json.dumps(GREETING).encode() + b"\r\n")
            # The client ends it with no line end.
            assert json.loads(theirs.recv(4096))["execute"] == "qmp_capabilities"
            for answer in ({"return": {}}, *events):
                theirs.sendall(json.dumps(answer).encode() + b"\r\n")
            theirs.recv(1)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    with contextlib.closing(Monitor()) as monitor, ours:
        monitor.connect(ours)
        yield Machine(Process(seconds), monitor, Path("none"))  # type: ignore[arg-type]
    theirs.shutdown(socket.SHUT_RDWR)
    thread.join()
    theirs.close()


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmimage.vm.machine.LISTEN_SECONDS", 0.05)


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([], []),
        ([event("RTC_CHANGE", offset=1), event("VSERPORT_CHANGE", id="channel0", open=True)], []),
        ([io_error("read", reason="Input/output error")], []),
        ([event("POWERDOWN"), io_error(reason=FULL)], [FULL]),
        # A guest tries again and again.
        ([io_error(reason=FULL)] * 500, [FULL]),
        ([io_error()], [""]),
        ([io_error(reason=None)], ["None"]),
        ([{"event": "BLOCK_IO_ERROR", "timestamp": {}}, {"event": "BLOCK_IO_ERROR", "data": []}], []),
    ],
    ids=["nothing", "others", "read", "full", "many", "no reason", "odd", "no data"],
)
def test_machine_whose_disk_takes_nothing_is_told_of_once(events: list[dict[str, Any]], told: list[str]) -> None:
    found: list[str] = []
    with machine(events) as running:
        assert running.wait(found.append) == 7
        assert len(running._monitor._client.events.history) == len(told), "the others are not kept"
    assert found == told


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signal_ends_the_wait_at_once(number: signal.Signals, raised: type[BaseException]) -> None:
    started = time.monotonic()
    with orderly_signals(), machine([], seconds=30) as running:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(raised):
            running.wait(lambda _: None)
        timer.join()
    assert time.monotonic() - started < 5


def test_warning_names_the_folder_and_what_to_do() -> None:
    text = unwritten(Path("/srv/machines/my.qcow2"), FULL)
    assert "/srv/machines: No space left on device\n" in text
    assert "Make room on the disk with /srv/machines" in text
    assert "cannot be written to /srv: an I/O error\n" in unwritten(Path("/srv/x"), "")
