from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

import pytest

from vmimage.cache.store import Store
from vmimage.util.errors import HostError
from vmimage.util.files import BESIDE, LEFT_SECONDS, written_beside
from vmimage.util.locks import lock_file

NOW = fcntl.LOCK_EX | fcntl.LOCK_NB


def test_locks_exclude_each_other(tmp_path: Path) -> None:
    first = lock_file(tmp_path / "lock", fcntl.LOCK_EX)
    assert first
    assert lock_file(tmp_path / "lock", NOW) is None
    first.close()
    shared = [lock_file(tmp_path / "lock", fcntl.LOCK_SH) for _ in range(2)]
    assert lock_file(tmp_path / "lock", NOW) is None
    for each in shared:
        assert each
        each.close()


@pytest.mark.parametrize("how", [fcntl.LOCK_EX, fcntl.LOCK_SH])
def test_files_are_open_to_read_and_to_write_as_nfs_wants_it(tmp_path: Path, how: int) -> None:
    file = lock_file(tmp_path / "lock", how)
    assert file
    with file:
        assert fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def test_what_a_file_says_stays(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("thesis")
    file = lock_file(tmp_path / "lock", fcntl.LOCK_EX)
    assert file
    with file:
        assert (tmp_path / "lock").read_text() == "thesis"


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    target, lock = tmp_path / "target", tmp_path / "lock"
    if kind == "link":
        target.write_text("thesis")
    if kind in ("link", "dangling"):
        lock.symlink_to(target)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with pytest.raises(HostError, match="is no lock"):
        lock_file(lock, NOW)
    assert target.exists() == (kind == "link")
    assert kind != "link" or target.read_text() == "thesis"


def test_a_sweep_follows_no_link_either(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    (tmp_path / "file").write_text("thesis")
    (store.root / "work" / "base-01234567").mkdir()
    (store.root / "locks" / "work-base-01234567").symlink_to(tmp_path / "file")
    with pytest.raises(HostError, match="is no lock"):
        store.sweep()
    assert (tmp_path / "file").read_text() == "thesis"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(HostError, match="file system without locks"):
        lock_file(tmp_path / "lock", fcntl.LOCK_EX)


def test_what_killed_writers_left_beside_a_file_goes_with_the_next_one(tmp_path: Path) -> None:
    def left(name: str, age: float) -> Path:
        path = tmp_path / name
        path.write_text("half")
        changed = path.stat().st_mtime - age
        os.utime(path, (changed, changed))
        return path

    gone = left(f".file.{BESIDE}abcdefgh", LEFT_SECONDS + 60)
    stay = {
        "of a moment ago": left(f".file.{BESIDE}bcdefghi", 0),
        "of another file": left(f".file2.{BESIDE}abcdefgh", LEFT_SECONDS + 60),
        "of somebody": left(".file.abcdefgh", LEFT_SECONDS + 60),
        "that is locked": left(f".file.{BESIDE}cdefghij", LEFT_SECONDS + 60),
    }
    to = tmp_path / f".file.{BESIDE}defghijk"
    to.symlink_to(stay["of somebody"])
    with stay["that is locked"].open() as writing, contextlib.ExitStack() as both:
        fcntl.flock(writing, NOW)
        outer = both.enter_context(written_beside(tmp_path / "file"))
        os.utime(outer, (0, 0))
        with written_beside(tmp_path / "file") as inner:
            inner.write_text("new")
        outer.write_text("newer")
        assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").read_text() == "newer"
    assert not gone.exists()
    assert [what for what, path in stay.items() if not path.exists()] == []
    assert to.is_symlink()
