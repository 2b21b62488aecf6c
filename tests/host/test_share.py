from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.unit.test_share import share
from vmimage.access.sshfs import PREPARE, UNMOUNT, WAIT_UNTIL_MOUNTED


def test_scripts_run_and_take_any_name(tmp_path: Path) -> None:
    made = share(tmp_path, f"{tmp_path}/a b'$(c)")
    status, said, errors = sh(made.script(PREPARE, again="", has_content="21", mounted="22", not_ours="23"))
    assert (status, said.split(), errors) == (0, [str(os.getuid()), str(os.getgid())], "")
    assert [path.name for path in tmp_path.iterdir()] == ["a b'$(c)"]
    (Path(made.target) / "content").write_text("")
    assert sh(made.script(PREPARE, again="", has_content="21", mounted="22", not_ours="23"))[0] == 21
    assert sh(made.script(WAIT_UNTIL_MOUNTED, seconds="1")) == (1, "", "")
    # Nothing to unmount: fusermount3 says so, or is not there.
    assert sh(made.script(UNMOUNT))[0] != 0


def sh(command: str) -> tuple[int, str, str]:
    """Run a command as the guest's ssh server does."""
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr
