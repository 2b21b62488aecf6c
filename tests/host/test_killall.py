"""k3s-killall.sh, on processes that stand for containers."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from vmimage import PROJECT

KILLALL = PROJECT / "provision/files/50-k3s/usr/local/bin/k3s-killall.sh"
# A shim with two containers: one closes its files when told to end, one takes no notice.
SHIM = """\
sh -c 'trap "echo closed > closed; exit" TERM; while :; do sleep 0.05; done' &
sh -c 'trap "" TERM; echo $$ > deaf.new; mv deaf.new deaf; while :; do sleep 0.05; done' &
wait
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_containers_may_close_their_files_and_are_killed_then(tmp_path: Path) -> None:
    shim = tmp_path / "k3s/data/0a1b/bin/containerd-shim-runc-v2"
    shim.parent.mkdir(parents=True)
    shim.write_text(SHIM)
    for tool in ("systemctl", "ip", "umount"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    with subprocess.Popen(["/bin/sh", str(shim)], cwd=tmp_path) as process:
        while not (tmp_path / "deaf").exists():
            time.sleep(0.01)
        environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(["/bin/sh", KILLALL, "1"], check=True, env=environment, timeout=30)
        # Killed, or ended by itself once its containers were.
        process.wait(timeout=10)
    assert (tmp_path / "closed").exists()
    end = time.monotonic() + 10
    while runs(int((tmp_path / "deaf").read_text())):
        assert time.monotonic() < end
        time.sleep(0.05)
