"""Watching as an ordinary user: directories that may not be read, and fewer watches than directories."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmimage import PROJECT
from vmimage.access.notify import Notifier

NOBODY = 54321


def watched(root: Path, limit: int, *, later: int = 0) -> str:
    """Watch in a user namespace of its own, where its root is nobody's but ours; returns what is told and said."""
    inner = f'echo {limit} > /proc/sys/user/max_inotify_watches; exec "$@"'
    argv = [
        "unshare",
        "-Ur",
        "sh",
        "-c",
        inner,
        "sh",
        sys.executable,
        "-m",
        "tests.host.test_notify",
        str(root),
        str(later),
    ]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60)
    if "unshare failed" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(f"no namespace of users here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_directory_that_may_not_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    locked = tmp_path / "mysql-data"
    locked.mkdir(mode=0)
    if os.geteuid() == 0:
        os.chown(locked, NOBODY, NOBODY)
    said = watched(tmp_path, 1000)
    assert "told: page" in said
    assert "said: --notify: not watched, since they cannot be read: mysql-data" in said


@pytest.mark.parametrize("also", ["readable", "unreadable"])
def test_few_watches(also: str, tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"d{number}").mkdir()
    if also == "unreadable":
        test_directory_that_may_not_be_read_is_left_out_and_told(tmp_path)
        (tmp_path / "page").unlink()
    said = watched(tmp_path, 3)
    assert "told: page" in said
    assert "said: --notify: the system has no watches left" in said


@pytest.mark.parametrize("also", ["readable", "unreadable"])
def test_watches_that_run_out_later(also: str, tmp_path: Path) -> None:
    if also == "unreadable":
        test_directory_that_may_not_be_read_is_left_out_and_told(tmp_path)
        (tmp_path / "page").unlink()
    said = watched(tmp_path, 5, later=9)
    assert "told: later 9" in said
    assert "said: --notify: the system has no watches left" in said


def test_new_directories_that_are_watched_are_nothing_to_speak_of(tmp_path: Path) -> None:
    said = watched(tmp_path, 100, later=9)
    assert "told: later 9" in said
    assert "no watches left" not in said


def main(root: Path, later: int) -> None:
    """Watch a directory until a file that is made in it is told.

    Args:
        later: How many directories are made in it meanwhile; then a file in each is waited for instead.
    """
    stop = threading.Event()

    told = set[bytes]()

    def tell(names: set[bytes]) -> None:
        told.update(names)
        if later and len(inner := {name for name in told if name.endswith(b"/page")}) == later:
            print(f"told: later {len(inner)}")  # noqa: T201
            stop.set()
        if b"page" in names:
            print("told: page")  # noqa: T201 - the parent reads it
            stop.set()

    notifier = Notifier(root, lambda text: print(f"said: {text}"))  # noqa: T201
    thread = threading.Thread(target=notifier.follow, args=(tell, stop))
    thread.start()
    time.sleep(1)
    for number in range(later):
        (root / f"later{number}").mkdir()
    if later:
        # Past the look into each new directory, and before the one at the watches.
        time.sleep(0.8)
        for number in range(later):
            (root / f"later{number}" / "page").touch()
        time.sleep(2.5)
    else:
        (root / "page").touch()
    thread.join(10)
    stop.set()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
