"""`invoke fetch` against servers that would never let it end."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.hostile_server import Hostile, ends_within, hostile
from tests.sandbox import Sandbox, finished
from vmimage import PROJECT

HEADERS = b"HTTP/1.1 200 OK\r\nX-Long: "
BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
PASSWORD = "t0psecret"  # noqa: S105 - of a server that is none


def started(tmp_path: Path, server: Hostile) -> Sandbox:
    mirror = server.url.replace("//", f"//ci:{PASSWORD}@")
    return Sandbox(PROJECT, tmp_path / "cache", tmp_path / "dist", {"VMIMAGE_MIRROR": mirror, "no_proxy": "*"})


@pytest.mark.parametrize("start", [HEADERS, BODY], ids=["headers", "body"])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_at_once(tmp_path: Path, start: bytes, signum: int, status: int) -> None:
    with hostile(lambda server: [server.drip(start)]) as server:
        process = started(tmp_path, server).start("fetch", "dev-env")
        assert ends_within(30, lambda: len(server.asked) > 1)
        began = time.monotonic()
        process.send_signal(signum)
        done = finished(process, 20)
        assert time.monotonic() - began < 3
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "cache" / "work").iterdir())
    log = next((tmp_path / "cache" / "logs").glob("*/run.log"))
    assert "***@" in log.read_text()
    assert PASSWORD not in log.read_text() + done.stderr + done.stdout
    assert log.parent.parent.stat().st_mode & 0o777 == 0o700
