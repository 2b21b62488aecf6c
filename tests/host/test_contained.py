"""Disks that name something else are refused before QEMU sees them; real qemu-img made them, and ours are taken."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pytest

from vmimage.formats.all import open_disk
from vmimage.formats.contained import SECTOR, require_self_contained
from vmimage.formats.format import MOST_DISK_BYTES, Opened, write_raw
from vmimage.formats.qcow2 import write_qcow2
from vmimage.formats.vmdk import write_vmdk
from vmimage.util.errors import VerifyError
from vmimage.util.run import run


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the host that no image may bring in."""
    path = tmp_path / "secret"
    path.write_bytes(b"secret".ljust(1 << 20, b"."))
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(300_000).ljust(1 << 20, b"\0"))
    return path


def created(to: Path, *options: str) -> Path:
    run(["qemu-img", "create", "-q", "-f", "qcow2", *options, to, "1M"])
    return to


BACKING = {
    "file": "{secret}",
    "link": "../{secret.name}",
    "server": "nbd://127.0.0.1:1/x",
    "folder": 'json:{{"driver":"raw","file":{{"driver":"vvfat","dir":"{secret.parent}","fat-type":16}}}}',
    "device": "/dev/zero",
}


@pytest.mark.parametrize("name", BACKING)
def test_backing_file_of_a_qcow2_is_refused(name: str, secret: Path, tmp_path: Path) -> None:
    disk = created(tmp_path / "a.qcow2", "-u", "-F", "raw", "-b", BACKING[name].format(secret=secret))
    with pytest.raises(ValueError, match="it names a backing file"):
        open_disk("qcow2", disk, tmp_path)
    # Nor does the next line of defence follow it.
    write_raw(Opened(path=disk, format="qcow2"), tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes().strip(b"\0") == b""


def test_backing_format_alone_is_refused_too(tmp_path: Path) -> None:
    disk = created(tmp_path / "a.qcow2", "-u", "-F", "raw", "-b", "/x")
    data = bytearray(disk.read_bytes())
    data[8:20] = bytes(12)
    disk.write_bytes(data)
    with pytest.raises(ValueError, match="it names a backing file"):
        require_self_contained(disk, "qcow2")


def test_data_file_of_a_qcow2_is_refused(secret: Path, tmp_path: Path) -> None:
    disk = created(tmp_path / "a.qcow2", "-o", f"data_file={tmp_path}/data.raw")
    with pytest.raises(ValueError, match="features that ours have not"):
        open_disk("qcow2", disk, tmp_path)
    # With the feature cleared, its name is still there.
    data = bytearray(disk.read_bytes())
    data[72:80] = bytes(8)
    disk.write_bytes(data)
    with pytest.raises(ValueError, match="it names a file with its data"):
        open_disk("qcow2", disk, tmp_path)


def test_encrypted_cut_and_odd_qcow2_are_refused(tmp_path: Path) -> None:
    whole = created(tmp_path / "whole.qcow2").read_bytes()
    for change in (
        {32: struct.pack(">I", 2)},
        {4: struct.pack(">I", 4)},
        {20: struct.pack(">I", 63)},
        {0: b"QFIx"},
        {72: struct.pack(">Q", 1 << 40)},
    ):
        data = bytearray(whole)
        for at, new in change.items():
            data[at : at + len(new)] = new
        (tmp_path / "a.qcow2").write_bytes(data)
        with pytest.raises(ValueError, match=r"^it "):
            require_self_contained(tmp_path / "a.qcow2", "qcow2")
    for size in (0, 3, 71, 100, 110):
        (tmp_path / "a.qcow2").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"^it is"):
            require_self_contained(tmp_path / "a.qcow2", "qcow2")


def descriptor(extent: str, *, kind: str = "monolithicFlat", more: str = "") -> bytes:
    return (
        f'# Disk DescriptorFile\nversion=1\nCID=7d1d5e7a\nparentCID=ffffffff\ncreateType="{kind}"\n{more}\n{extent}\n'
        'ddb.geometry.cylinders = "2"\nddb.geometry.heads = "16"\nddb.geometry.sectors = "63"\n'
    ).encode()


def test_vmdk_that_is_a_text_is_refused(secret: Path, tmp_path: Path) -> None:
    (tmp_path / "a.vmdk").write_bytes(descriptor(f'RW 2048 FLAT "{secret}" 0'))
    with pytest.raises(ValueError, match="no stream-optimized VMDK"):
        open_disk("vmdk", tmp_path / "a.vmdk", tmp_path)


def vmdk(raw: Path) -> bytearray:
    sink = io.BytesIO()
    write_vmdk(raw, sink, level=1)
    return bytearray(sink.getvalue())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (descriptor('RW 1 FLAT "{secret}" 0'), "not that of one stream-optimized disk"),
        (descriptor('RW 1 FLAT "{secret}" 0', kind="streamOptimized"), "not that of one stream-optimized disk"),
        (
            descriptor('RDONLY 1 SPARSE "a"\rRW 1 FLAT "{secret}" 0', kind="streamOptimized"),
            "not that of one stream-optimized disk",
        ),
        (
            descriptor('RDONLY 1 SPARSE "a"', kind="streamOptimized", more='parentFileNameHint="{secret}"'),
            "it names a parent",
        ),
        (b"", "not that of one"),
    ],
)
def test_descriptor_in_a_vmdk_that_names_files_is_refused(
    text: bytes, why: str, raw: Path, secret: Path, tmp_path: Path
) -> None:
    data = vmdk(raw)
    data[SECTOR : 21 * SECTOR] = text.replace(b"{secret}", bytes(secret)).ljust(20 * SECTOR, b"\0")
    (tmp_path / "a.vmdk").write_bytes(data)
    with pytest.raises(ValueError, match=why):
        open_disk("vmdk", tmp_path / "a.vmdk", tmp_path)


def test_vmdk_whose_header_or_footer_tells_no_capacity_is_refused(raw: Path, tmp_path: Path) -> None:
    whole, path = vmdk(raw), tmp_path / "a.vmdk"
    for places, why in (((0,), "contradicts"), ((-2 * SECTOR,), "contradicts"), ((0, -2 * SECTOR), "no capacity")):
        data = bytearray(whole)
        for place in places:
            at = place % len(data)
            data[at + 12 : at + 20] = bytes(8)
        path.write_bytes(data)
        with pytest.raises(ValueError, match=why):
            require_self_contained(path, "vmdk")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="no regular file"):
            require_self_contained(path, "qcow2")


def test_our_own_disks_come_back(raw: Path, tmp_path: Path) -> None:
    write_qcow2(raw, tmp_path / "a, b.qcow2", compression="zstd")
    (tmp_path / "a.vmdk").write_bytes(vmdk(raw))
    for name in ("a, b.qcow2", "a.vmdk"):
        write_raw(open_disk(name.rpartition(".")[2], tmp_path / name, tmp_path), tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes() == raw.read_bytes()
    with pytest.raises(VerifyError):
        write_raw(Opened(path=tmp_path / "a.vmdk", format="qcow2"), tmp_path / "out.raw")


def test_disk_of_absurd_size_is_refused(tmp_path: Path) -> None:
    for kind, options in (("qcow2", ()), ("vhdx", ("-o", "subformat=dynamic"))):
        disk = tmp_path / f"a.{kind}"
        run(["qemu-img", "create", "-q", "-f", kind, *options, disk, f"{MOST_DISK_BYTES + (1 << 30)}"])
        with pytest.raises(ValueError, match="more than 1024 GiB"):
            open_disk(kind, disk, tmp_path)


def test_qcow2_whose_clusters_are_all_the_same_one_does_not_fill_the_disk(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is allocated counts, however small the file is."""
    write_qcow2(raw, tmp_path / "a.qcow2", compression="zstd")
    disk = open_disk("qcow2", tmp_path / "a.qcow2", tmp_path)
    monkeypatch.setattr("vmimage.formats.format.MOST_DATA_BYTES", 100_000)
    with pytest.raises(VerifyError, match=r"a\.qcow2 is refused: \d+ bytes in it are no zeros"):
        write_raw(disk, tmp_path / "out.raw")
    assert not (tmp_path / "out.raw").exists()
