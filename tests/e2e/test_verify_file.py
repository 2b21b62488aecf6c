"""`invoke verify FILE`, with real machines."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.e2e.conftest import released_file
from tests.sandbox import Sandbox
from vmimage.util.run import run


def test_verify_of_a_file_by_itself_as_hyper_v_would_start_it(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "toolbox.vhdx"
    run(["qemu-img", "convert", "-O", "vhdx", released_file(release, "qcow2"), file])
    place = Sandbox(sandbox.project, tmp_path / "cache", tmp_path / "dist")
    done = place.invoke("verify", str(file), "--json")
    assert done.returncode == 0, done.stderr
    verdict = done.event("result")["verdict"]
    assert (verdict["passed"], verdict["unchanged"]) == (True, True)
    with file.open("rb") as content:
        assert verdict["files"]["vhdx"]["sha256"] == hashlib.file_digest(content, "sha256").hexdigest()
    evidence = Path(done.event("run")["log"]) / "verify" / "vhdx-hyperv-bios"
    assert (evidence / "junit.xml").stat().st_size > 1000
    assert (evidence / "screen.png").stat().st_size > 1000
    assert "login" in (evidence / "serial.log").read_text(errors="replace")
    assert not list(evidence.glob("id_*"))
    assert place.nothing_runs(), place.processes()
