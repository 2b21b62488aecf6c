from __future__ import annotations

from pathlib import Path

from vmimage import PROJECT
from vmimage.stages.bake.payload import MOUNT, write_payload
from vmimage.util.run import run


def test_payload_holds_what_the_steps_that_will_run_read_and_nothing_else(tmp_path: Path) -> None:
    image = tmp_path / "payload.img"
    pins: dict[str, dict[str, dict[str, str]]] = {
        script: {} for script in ("40-sshfs.sh", "60-environment.sh", "99-seal.sh")
    }
    write_payload("dev-env", pins, {"image": "dev-env"}, Path, tmp_path / "payload", image)
    assert not (tmp_path / "payload").exists()
    listed = run(["debugfs", "-R", "ls -p /provision", image]).output
    assert {line.split("/")[5] for line in listed.splitlines() if line.startswith("/")} == {
        ".", "..", "40-sshfs.sh", "60-environment.sh", "99-seal.sh",
    }  # fmt: skip
    program = "/files/60-environment/usr/local/lib/dev-env/dev_env/cli.py"
    source = (PROJECT / "guest/dev_env/cli.py").read_text()
    assert source.strip() in run(["debugfs", "-R", f"cat {program}", image]).output
    env = run(["debugfs", "-R", "cat /env/60-environment.sh", image]).output
    assert f"export PINS={MOUNT}/pins/60-environment" in env
