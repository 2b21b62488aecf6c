from __future__ import annotations

import io
import os
import stat
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest

from vmimage.disk.ext4 import Node, Root, contents, parse_free, parse_runs, read_root, tar_stream
from vmimage.disk.raw import RawDisk, read_range
from vmimage.stages.base import write_disk
from vmimage.util.errors import VerifyError

FILES = {"etc/small": b"a\n", "etc/empty": b"", "srv/large": os.urandom(3 << 20), "srv/odd name\t'ü": b"x" * 5000}
LONG = "/" + "very-long/" * 12


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> RawDisk:
    folder = tmp_path_factory.mktemp("extfs")
    tree = folder / "tree"
    for name, data in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    with (tree / "srv/sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
        file.truncate(2 << 20)
    (tree / "etc/second").hardlink_to(tree / "etc/small")
    (tree / "etc/short").symlink_to("small")
    (tree / "etc/long").symlink_to(LONG)
    (tree / "srv/large").chmod(0o4750)
    path = folder / "disk.raw"
    write_disk(path, tree)
    return RawDisk(path)


@pytest.fixture(scope="module")
def root(disk: RawDisk, tmp_path_factory: pytest.TempPathFactory) -> Root:
    return read_root(disk, tmp_path_factory.mktemp("work"))


def node(root: Root, path: str) -> Node:
    (found,) = [node for node in root.nodes if node.path == path]
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_found_with_its_bytes(disk: RawDisk, root: Root, name: str) -> None:
    with disk.path.open("rb") as file:
        found = b"".join(contents(node(root, f"/{name}"), lambda a, b: read_range(file.fileno(), a, b)))
    assert found == FILES[name]


def test_tar_holds_the_same_tree(disk: RawDisk, root: Root) -> None:
    with disk.path.open("rb") as file:
        data = b"".join(tar_stream(root.nodes, lambda a, b: read_range(file.fileno(), a, b)))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name.removeprefix("./"): member for member in tar}
        for name, content in FILES.items():
            if not members[name].islnk():
                assert tar.extractfile(members[name]).read() == content  # type: ignore[union-attr]
        sparse = tar.extractfile("./srv/sparse").read()  # type: ignore[union-attr]
    assert sparse == bytes(1 << 20) + b"end" + bytes((1 << 20) - 3)
    assert members["etc/short"].linkname == "small"
    assert members["etc/long"].linkname == LONG
    # Of the two names the second in order is the link.
    assert (members["etc/small"].islnk(), members["etc/small"].linkname) == (True, "./etc/second")
    assert members["srv/large"].mode == 0o4750
    assert members["srv"].isdir()


def test_free_space_and_files_do_not_overlap(root: Root) -> None:
    runs = [(run.disk, run.disk + run.length) for node in root.nodes for run in node.runs if node.path != "/etc/second"]
    spans = sorted([*root.free, *runs, *((run.disk, run.disk + run.length) for run in root.journal)])
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[0][0] >= root.start
    assert spans[-1][1] <= root.start + root.size


def test_folders_are_nodes(root: Root) -> None:
    assert stat.S_ISDIR(node(root, "/lost+found").mode)
    assert not any(node.path.endswith(("/.", "/..")) for node in root.nodes)


def test_disk_without_a_file_system(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    with pytest.raises(VerifyError):
        read_root(RawDisk(tmp_path / "disk.raw"), tmp_path)


def test_runs_of_extents_and_of_old_block_lists() -> None:
    text = "Inode: 9 Flags: 0x0 (x):1\nEXTENTS:\n(ETB0):7, (0-2):10-12, (5):20, (8-9[u]):30-31\n"
    runs = parse_runs(text, start=1000, block=100)
    assert [(run.at, run.disk, run.length) for run in runs] == [(0, 2000, 300), (500, 3000, 100), (800, 4000, 200)]
    runs = parse_runs("Inode: 9\nBLOCKS:\n(0-11):5-16, (IND):17, (12):18\nTOTAL: 14\n", start=0, block=1)
    assert [(run.at, run.length) for run in runs] == [(0, 12), (12, 1)]


def test_an_inode_without_blocks() -> None:
    assert parse_runs('Inode: 12 (a)\nFast link dest: "usr (1):2"\n', 0, 4096) == ()


def test_free_ranges() -> None:
    text = "Group 0:\n  Free blocks: 3-4, 9\n  Free inodes: 5-6\nGroup 1:\n  Free blocks: \n  Free blocks: 20-29\n"
    assert parse_free(text, start=10, block=2) == ((16, 20), (28, 30), (50, 70))
