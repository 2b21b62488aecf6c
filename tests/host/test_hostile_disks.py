"""Root file systems that are no trees, or name what is not theirs: each is an error that says why, at once."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vmimage.commands.size.measure import DPKG_LISTS, package_of
from vmimage.disk.ext4 import MOST_BYTES, Node, Root, Run, read_tree, require_within, tar_stream
from vmimage.disk.raw import ROOT_TYPE, RawDisk
from vmimage.stages.verify.subject import image_facts
from vmimage.util.errors import VerifyError
from vmimage.util.run import run

START = 1 << 20
FACTS = {"image": "x", "components": [], "versions": {}}
Change = Callable[[bytearray], None]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., RawDisk]:
    """Makes a disk of a tree, and changes bytes of its file system behind the back of all checksums."""

    def make(fill: Callable[[Path], object], change: Change = lambda _: None) -> RawDisk:
        tree, system, raw = tmp_path / "tree", tmp_path / "fs", tmp_path / "disk.raw"
        (tree / "etc/vmimage").mkdir(parents=True)
        (tree / "etc/vmimage/release.json").write_text(json.dumps(FACTS))
        fill(tree / "etc/vmimage")
        options: list[str | Path] = [
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "^metadata_csum,^dir_index,^has_journal",
            "-d",
            tree,
        ]
        run(["mke2fs", *options, system, "8192k"])
        data = bytearray(system.read_bytes())
        change(data)
        with raw.open("wb") as file:
            file.truncate(START + len(data) + START)
            file.seek(START)
            file.write(data)
        table = f"label: gpt\nstart={START // 512}, size={len(data) // 512}, type={ROOT_TYPE}\n"
        (tmp_path / "table").write_text(table)
        run(["sh", "-euc", 'sfdisk --quiet --no-reread --no-tell-kernel "$1" < "$2"', "sh", raw, tmp_path / "table"])
        return RawDisk(raw)

    return make


def renamed(old: bytes, new: bytes) -> Change:
    """Rename an entry of a folder."""

    def change(data: bytearray) -> None:
        assert len(old) == len(new)
        assert old in data
        data[:] = data.replace(old, new)

    return change


def leads_to_its_own_folder(*names: bytes) -> Change:
    """Let folders be the folder that they are in."""

    def change(data: bytearray) -> None:
        for name in names:
            at = data.index(name) - 8
            (folder,) = struct.unpack_from("<I", data, data.index(b"release.json") - 8 - 12 - 12)
            struct.pack_into("<I", data, at, folder)

    return change


TARGET = b"../../../../tmp/by-the-image"


def link_and_file(to: Path) -> None:
    (to / "aaaaaaaa").symlink_to("/tmp/by-the-image")  # noqa: S108 - where the image points to
    (to / "bbbbbbbb").write_text("x")


def folders(*names: str) -> Callable[[Path], object]:
    return lambda to: [(to / name).mkdir() for name in names]  # type: ignore[func-returns-value]


REFUSED: dict[str, tuple[Callable[[Path], object], Change]] = {
    "a name with slashes": (lambda to: (to / ("A" * len(TARGET))).write_text("x"), renamed(b"A" * len(TARGET), TARGET)),
    "a name that stands twice": (
        link_and_file,
        renamed(b"bbbbbbbb", b"aaaaaaaa"),
    ),
    "a name of two lines": (
        lambda to: (to / "aaaa_99_100644_0_0_b_1_").write_text("x"),
        renamed(b"aaaa_99_100644_0_0_b_1_", b"aaaa\n99/100644/0/0/b/1/"),
    ),
    "a name that is a whole entry and another one": (
        lambda to: (to / "aaaa_0____99_100644_0_0_b").write_text("x"),
        renamed(b"aaaa_0____99_100644_0_0_b", b"aaaa/0/\n/99/100644/0/0/b/"[:25]),
    ),
    "a folder in itself": (folders("loopA"), leads_to_its_own_folder(b"loopA")),
    "a folder in itself, twice": (
        folders("loopA", "loopB"),
        leads_to_its_own_folder(b"loopA", b"loopB"),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_tree_is_refused_and_nothing_is_written(
    what: str, made: Callable[..., RawDisk], tmp_path: Path
) -> None:
    disk = made(*REFUSED[what])
    work = tmp_path / "work"
    work.mkdir()
    started = time.monotonic()
    with pytest.raises(VerifyError, match=r"is none, or twice|is elsewhere, too|cannot read the folder"):
        read_tree(disk, work)
    assert time.monotonic() - started < 10
    assert list(work.iterdir()) == []
    assert not Path("/tmp/by-the-image").exists()  # noqa: S108 - where the image points to
    with pytest.raises(VerifyError, match=r"no readable /etc/vmimage/release\.json"):
        image_facts(disk, work)


def link(to: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / "release.json").unlink()
        (folder / "release.json").symlink_to(to)

    return make


def text(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "release.json").write_text(content)


def sparse(folder: Path) -> None:
    with (folder / "release.json").open("r+b") as file:
        file.truncate(64 << 30)


FACTLESS = {
    "a device of this host": link("/dev/zero"),
    "a file of this host": link("/etc/passwd"),
    "a link": link("other"),
    "a file of 64 GiB": sparse,
    "too deep": text("[" * 200_000),
    "no image": text('{"components": [], "versions": {}}'),
    "numbers": text('{"components": [1], "versions": {}, "image": "x"}'),
}


@pytest.mark.parametrize("what", FACTLESS)
def test_release_that_says_nothing_useful_is_refused(what: str, made: Callable[..., RawDisk], tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(VerifyError, match=r"no readable /etc/vmimage/release\.json"):
        image_facts(made(FACTLESS[what]), tmp_path)
    assert time.monotonic() - started < 20


def test_honest_disk_is_read(made: Callable[..., RawDisk], tmp_path: Path) -> None:
    assert image_facts(made(lambda _: None), tmp_path) == FACTS


def test_link_that_leads_to_a_text_like_extents_has_none(made: Callable[..., RawDisk], tmp_path: Path) -> None:
    target = 'x"\nEXTENTS:\n(0-9):1-9999999999\n mtime: 0x00000001'
    disk = made(lambda folder: (folder / "imitation").symlink_to(target))
    (node,) = read_tree(disk, tmp_path).find("*/imitation")
    assert (node.target, node.runs) == (target, ())
    assert node.mtime > 1


def test_file_system_that_speaks_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    """Each block that it speaks of would be noted: many are many GiB of memory."""
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    disk = RawDisk(tmp_path / "disk.raw")
    good = Root(start=4096, block=1024, size=100 << 10, nodes=(), journal=(), free=((4096, 8192),))
    require_within(disk, good)
    file = Node(path="/x", inode=12, mode=0o100644, uid=0, gid=0, size=1, mtime=0, target="", runs=())
    for bad, why in (
        (replace(good, size=1 << 20), "larger than its disk"),
        (replace(good, free=((4096, 1 << 60),)), "blocks that are not in it"),
        (replace(good, journal=(Run(at=0, disk=0, length=1024),)), "blocks that are not in it"),
        (replace(good, nodes=(replace(file, runs=(Run(at=0, disk=8192, length=-1024),)),)), "not in it"),
        (replace(good, nodes=(replace(file, size=MOST_BYTES),) * 2), "more than 256 GiB"),
    ):
        with pytest.raises(VerifyError, match=why):
            require_within(disk, bad)


def test_lists_of_packages_and_targets_of_links_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(8192))
    node = Node(
        path=f"{DPKG_LISTS}x.list", inode=12, mode=0o100644, uid=0, gid=0, size=1 << 37, mtime=0, target="", runs=()
    )
    with (tmp_path / "disk.raw").open("rb") as file, pytest.raises(VerifyError, match="more than 16777216"):
        package_of([node], file.fileno())
    link_node = replace(node, mode=0o120777, path="/link")
    with pytest.raises(VerifyError, match="it is not told where it leads"):
        list(tar_stream([link_node], lambda start, end: bytes(end - start)))
