from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from vmimage.formats.all import open_disk
from vmimage.formats.format import MOST_DISK_BYTES, Appliance
from vmimage.formats.vhd import MIB, SECTOR, check_vhd, checksum, footer, write_vhd
from vmimage.util.run import run

APPLIANCE = Appliance(name="a", version="1", vendor="v", summary="s", cpus=1, memory_mib=1, forwards=())


@pytest.fixture
def vhd(tmp_path: Path) -> Path:
    """A VHD of a disk that is no whole number of MiB."""
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.write(os.urandom(100_000))
        file.truncate(5 * MIB + 4096)
    write_vhd(disk, tmp_path / "a.vhd", APPLIANCE)
    return tmp_path / "a.vhd"


def test_qemu_finds_the_disk_in_it_and_its_size_is_whole(vhd: Path, tmp_path: Path) -> None:
    assert vhd.stat().st_size == 6 * MIB + SECTOR
    run(["qemu-img", "compare", "-f", "raw", "-F", "vpc", tmp_path / "disk.raw", vhd])
    assert '"virtual-size": 6291456' in run(["qemu-img", "info", "--output=json", "-f", "vpc", vhd]).output
    assert open_disk("vhd", vhd, tmp_path).format == "vpc"


def test_same_disk_gives_the_same_bytes_and_holes_stay_holes(vhd: Path, tmp_path: Path) -> None:
    write_vhd(tmp_path / "disk.raw", tmp_path / "b.vhd", APPLIANCE)
    assert vhd.read_bytes() == (tmp_path / "b.vhd").read_bytes()
    assert vhd.stat().st_blocks * 512 < MIB


def test_footer_is_that_which_qemu_writes_but_for_time_and_identity(tmp_path: Path) -> None:
    run(["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size", tmp_path / "q.vhd", "5M"])
    theirs = (tmp_path / "q.vhd").read_bytes()[-SECTOR:]
    ours = footer(5 * MIB, uuid.UUID(bytes=theirs[68:84]))
    # Bytes 24 to 28 are the time, those from 32 the version of the creator; 64 to 68 sum all of it up.
    for start, end in ((0, 24), (28, 32), (36, 64), (68, SECTOR)):
        assert ours[start:end] == theirs[start:end], (start, end)
    assert int.from_bytes(theirs[64:68], "big") == checksum(theirs)


@pytest.mark.parametrize(
    ("at", "data", "why"),
    [
        (0, b"c0nectix", "no footer"),
        (60, b"\0\0\0\3", "checksum"),
        (70, b"x", "checksum"),
    ],
)
def test_damaged_footer_is_refused(vhd: Path, at: int, data: bytes, why: str) -> None:
    with vhd.open("r+b") as file:
        file.seek(at - SECTOR, os.SEEK_END)
        file.write(data)
    with pytest.raises(ValueError, match=why):
        check_vhd(vhd)


def test_file_that_is_cut_short_or_not_whole_is_refused(vhd: Path, tmp_path: Path) -> None:
    data = vhd.read_bytes()
    vhd.write_bytes(data[SECTOR:])
    with pytest.raises(ValueError, match="Azure wants whole MiB"):
        check_vhd(vhd)
    vhd.write_bytes(data[-SECTOR:])
    with pytest.raises(ValueError, match="too short"):
        check_vhd(vhd)


def test_vhd_that_qemu_would_read_from_its_start_is_refused(vhd: Path, tmp_path: Path) -> None:
    with vhd.open("r+b") as file:
        file.write(b"conectix")
    with pytest.raises(ValueError, match="would be read as another disk"):
        open_disk("vhd", vhd, tmp_path)


def test_vhd_of_absurd_size_is_refused(tmp_path: Path) -> None:
    size = MOST_DISK_BYTES + MIB
    with (tmp_path / "a.vhd").open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(footer(size, uuid.UUID(int=0)))
    with pytest.raises(ValueError, match="more than 1024 GiB"):
        check_vhd(tmp_path / "a.vhd")
    with pytest.raises(ValueError, match="no regular file"):
        check_vhd(Path("/dev/zero"))
