from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from vmimage.cache.store import Store
from vmimage.util.errors import HostError
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
