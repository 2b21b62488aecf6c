"""`invoke verify FILE`, with real machines. It began earlier, and has run beside the tests of files before this one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.e2e.conftest import ByItself


def test_verify_of_a_file_by_itself_as_hyper_v_would_start_it(by_itself: ByItself) -> None:
    done = by_itself.done.result()
    assert done.returncode == 0, done.stderr
    verdict = done.event("result")["verdict"]
    assert (verdict["passed"], verdict["unchanged"]) == (True, True)
    with by_itself.file.open("rb") as content:
        assert verdict["files"]["vhdx"]["sha256"] == hashlib.file_digest(content, "sha256").hexdigest()
    evidence = Path(done.event("run")["log"]) / "verify" / "vhdx-hyperv-bios"
    assert (evidence / "junit.xml").stat().st_size > 1000
    assert (evidence / "screen.png").stat().st_size > 1000
    assert "login" in (evidence / "serial.log").read_text(errors="replace")
    assert not list(evidence.glob("id_*"))
    assert by_itself.place.nothing_runs(), by_itself.place.processes()
