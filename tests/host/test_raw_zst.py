from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard

from vmimage.formats import raw_zst
from vmimage.formats.raw_zst import read_raw_zst, write_raw_zst
from vmimage.util.run import run


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(raw_zst, "HOLE_FRAME", 10 << 20)
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(b"boot" * 3_000_000)
        file.seek(70 << 20)
        file.write(b"data" * 1000)
        file.truncate((99 << 20) + 512)
    return path


def test_comes_back_and_is_sparse(disk: Path, tmp_path: Path) -> None:
    write_raw_zst(disk, tmp_path / "disk.raw.zst", level=3)
    read_raw_zst(tmp_path / "disk.raw.zst", tmp_path / "back.raw")
    run(["cmp", disk, tmp_path / "back.raw"])
    assert (tmp_path / "back.raw").stat().st_blocks * 512 < 20 << 20
    assert (tmp_path / "disk.raw.zst").stat().st_size < 100_000


def test_same_disk_same_bytes(disk: Path, tmp_path: Path) -> None:
    write_raw_zst(disk, tmp_path / "a", level=3, threads=1)
    write_raw_zst(disk, tmp_path / "b", level=3, threads=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_damage_is_noticed(disk: Path, tmp_path: Path) -> None:
    write_raw_zst(disk, tmp_path / "a", level=3)
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:200] + b"!!!!!!!!" + data[208:])
    with pytest.raises(ValueError, match="a is damaged"):
        read_raw_zst(tmp_path / "a", tmp_path / "back.raw")


def test_file_that_cannot_be_written(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_raw_zst(disk, Path("/dev/full"), level=3)


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_file_that_is_cut_short_is_damaged(disk: Path, tmp_path: Path, cut: int) -> None:
    write_raw_zst(disk, tmp_path / "a", level=3)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-cut])
    with pytest.raises(ValueError, match="a is damaged"):
        read_raw_zst(tmp_path / "a", tmp_path / "back.raw")
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ValueError, match="a is damaged: it is cut short"):
        read_raw_zst(tmp_path / "a", tmp_path / "back.raw")


def test_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 100 KiB can be 1 GiB, and a larger one any size."""
    monkeypatch.setattr(raw_zst, "MOST_DATA_BYTES", 32 << 20)
    monkeypatch.setattr("vmimage.formats.format.MOST_DISK_BYTES", 256 << 20)
    compress = zstandard.ZstdCompressor().compress
    for data, why in ((b"x" * (16 << 20), "are no zeros, more than"), (bytes(16 << 20), "more than 0 GiB")):
        (tmp_path / "a").write_bytes(compress(data) * 1000)
        with pytest.raises(ValueError, match=why):
            read_raw_zst(tmp_path / "a", tmp_path / "back.raw")
        assert (tmp_path / "back.raw").stat().st_blocks * 512 <= 32 << 20


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="no regular file"):
        read_raw_zst(tmp_path / "fifo", tmp_path / "back.raw")
