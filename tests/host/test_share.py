from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.unit.test_share import share
from vmimage.access.doors import outward_links
from vmimage.access.sshfs import PREPARE, UNMOUNT, WAIT_UNTIL_MOUNTED
from vmimage.util.files import remove_tree


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


def test_folders_in_folders_without_end_are_looked_through_and_removed(tmp_path: Path) -> None:
    """A machine leaves them in a writable share; Python calls itself a thousand times at most."""
    top = tmp_path / "top"
    top.mkdir()
    (top / "out").symlink_to("/etc")
    handle = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("a", dir_fd=handle)
        inner = os.open("a", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.symlink("/etc", "deep", dir_fd=handle)
    os.close(handle)
    try:
        assert outward_links(top).keys() == {b"out", b"a/" * 1500 + b"deep"}
    finally:
        remove_tree(top)
    assert not top.exists()
