from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vmimage.disk.ext4 import read_tree
from vmimage.disk.raw import RawDisk, extents
from vmimage.stages.bake.bake import seal_disk
from vmimage.stages.base import write_disk
from vmimage.util.errors import VerifyError
from vmimage.util.run import run

SECRET = b"ssh-secret-of-this-test"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> RawDisk:
    """A small tree on a disk as the base stage writes it."""
    folder = tmp_path_factory.mktemp("disk")
    tree = folder / "tree"
    (tree / "etc/sub").mkdir(parents=True)
    (tree / "etc/sub/key").write_bytes(SECRET + b"\n" + bytes(10_000))
    (tree / "etc/link").symlink_to("/etc/sub")
    path = folder / "disk.raw"
    write_disk(path, tree)
    return RawDisk(path)


def test_root_partition_is_found(disk: RawDisk) -> None:
    assert disk.root == f"{disk.path}?offset={128 << 20}"


def test_tree_is_read_by_path_and_follows_no_link(disk: RawDisk, tmp_path: Path) -> None:
    tree = read_tree(disk, tmp_path)
    assert tree.read("/etc/sub/key").startswith(SECRET)
    assert [node.path for node in tree.find("/etc/s*")] == ["/etc/sub", "/etc/sub/key"]
    for path in ("/none", "/etc", "/etc/link", "/etc/link/key", "/etc/../etc/sub/key", "etc/sub/key"):
        with pytest.raises(VerifyError, match="the image has no file"):
            tree.read(path)
    with pytest.raises(VerifyError, match="more than 3"):
        tree.read("/etc/sub/key", most=3)
    assert list(tmp_path.iterdir()) == []


def test_search_finds_bytes_and_their_file(disk: RawDisk) -> None:
    ((offset, found),) = disk.search(re.compile(b"ssh-secret-of-[a-z-]+"))
    assert found == SECRET
    assert disk.owner(offset) == "/etc/sub/key"


def test_bytes_outside_of_files_have_no_owner(disk: RawDisk) -> None:
    assert disk.owner(0) == ""
    assert disk.owner(7 << 30) == ""


def test_sealing_drops_deleted_bytes_and_gives_the_final_size(disk: RawDisk, tmp_path: Path) -> None:
    copy = RawDisk(tmp_path / "copy.raw")
    run(["cp", "--sparse=always", disk.path, copy.path])
    run(["debugfs", "-w", "-R", "rm /etc/sub/key", copy.root])
    assert list(copy.search(re.compile(SECRET))), "deleting leaves the bytes"
    seal_disk(copy.path, 9 << 30)
    assert not list(copy.search(re.compile(SECRET)))
    assert copy.path.stat().st_size == 9 << 30
    table = json.loads(run(["sfdisk", "--json", copy.path]).output)["partitiontable"]
    assert table["lastlba"] == (9 << 30) // 512 - 34


def test_disk_without_partitions(tmp_path: Path) -> None:
    path = tmp_path / "empty.raw"
    path.write_bytes(bytes(1 << 20))
    with pytest.raises(VerifyError):
        _ = RawDisk(path).root


def test_extents_skip_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10 << 20)
        file.seek(4 << 20)
        file.write(b"x" * 4096)
    with path.open("rb") as file:
        assert list(extents(file.fileno())) == [(4 << 20, (4 << 20) + 4096)]
