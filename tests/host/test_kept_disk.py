"""`invoke run --disk FILE`: what the disk stands on stays beside it, and is compared before each start."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import released
from vmimage import PROJECT
from vmimage.commands import kept_disk
from vmimage.commands.kept_disk import find_base, folder_of, make_kept, require_base
from vmimage.commands.run_image import run_image, take_overlay
from vmimage.stages.release.dist import Release, choose, remove_releases
from vmimage.util.errors import HostError, InputError, VerifyError
from vmimage.util.files import sha256_file
from vmimage.util.run import run
from vmimage.util.settings import options

VERSION = "20261127-01234567"


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A release of a qcow2 with something in it."""
    raw = tmp_path / "x.raw"
    raw.write_bytes(b"base" * (1 << 18))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, tmp_path / "x.qcow2"])
    released(tmp_path / "dist", "toolbox", VERSION, (tmp_path / "x.qcow2").read_bytes())
    return choose(tmp_path / "dist", "toolbox", None)


def content(disk: Path, into: Path) -> bytes:
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, into])
    return into.read_bytes()


def test_disk_outlives_its_release_and_moves_with_its_base(release: Release, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert find_base(folder / "my.qcow2") is None
    make_kept(release, folder / "my.qcow2")
    assert (folder / "my.qcow2.base/disk").stat().st_ino == release.file("qcow2").stat().st_ino, "it takes no room"
    assert {path.name for path in folder.rglob("*")} == {"my.qcow2", "my.qcow2.base", "disk", "base.json"}
    remove_releases(tmp_path / "dist")
    folder.rename(tmp_path / "moved")
    disk = tmp_path / "moved/my.qcow2"
    base = find_base(disk)
    assert base
    assert (base.image, base.version, base.sha256) == ("toolbox", VERSION, sha256_file(tmp_path / "x.qcow2"))
    assert base.machine.memory == "2 GiB"
    (tmp_path / "moved/my.qcow2.base/overlay.new").hardlink_to(disk)
    require_base(disk, base)
    assert disk.stat().st_nlink == 1, "no second name stays of a run that was killed at its last step"
    assert content(disk, tmp_path / "y.raw") == (tmp_path / "x.raw").read_bytes()


def test_base_that_is_gone_or_another_is_refused(release: Release, tmp_path: Path) -> None:
    disk = tmp_path / "my.qcow2"
    make_kept(release, disk)
    base = find_base(disk)
    assert base
    under = tmp_path / "my.qcow2.base/disk"
    data = bytearray(under.read_bytes())
    data[-1] ^= 1
    under.unlink()
    with pytest.raises(VerifyError, match="which is gone") as refused:
        require_base(disk, base)
    assert VERSION in refused.value.hint
    under.symlink_to(tmp_path / "x.qcow2")
    with pytest.raises(VerifyError, match="which is gone"):
        require_base(disk, base)
    under.unlink()
    under.write_bytes(data)
    with pytest.raises(VerifyError, match=f"is not what it was\n    was   {base.sha256}\n    found "):
        require_base(disk, base)


def foreign(what: str, disk: Path, release: Release) -> None:  # noqa: C901 - a list of what can be there
    other = disk.with_name("other")
    if what == "a qcow2":
        run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "8M"])
    elif what == "a raw file":
        disk.write_bytes(bytes(1 << 20))
    elif what == "a folder":
        disk.mkdir()
    elif what == "a link":
        make_kept(release, other)
        disk.symlink_to(other)
        disk.with_name(f"{disk.name}.base").symlink_to(f"{other}.base")
    elif what == "a link to nothing":
        disk.symlink_to(other)
    elif what == "a pipe":
        os.mkfifo(disk)
    elif what == "of an earlier version":
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", release.file("qcow2"), "-F", "qcow2", disk])
    elif what == "the released file":
        disk.hardlink_to(release.file("qcow2"))
    elif what == "no folder":
        disk.parent.rmdir()
    elif what == "a foreign base":
        (folder := disk.with_name(f"{disk.name}.base")).mkdir()
        (folder / "photo.jpg").write_text("mine")
    elif what == "a base as a file":
        disk.with_name(f"{disk.name}.base").write_text("mine")
    else:
        make_kept(release, disk)
        spoil(what, disk)


def spoil(what: str, disk: Path) -> None:
    facts = disk.with_name(f"{disk.name}.base") / "base.json"
    text = facts.read_text()
    if what == "only its base":
        disk.unlink()
    elif what == "no facts":
        facts.unlink()
    elif what == "half of the facts":
        facts.write_text(text[: len(text) // 2])
    elif what == "facts that are a link":
        facts.rename(disk.with_name("facts"))
        facts.symlink_to(disk.with_name("facts"))
    elif what == "wrong facts":
        facts.write_text(json.dumps(json.loads(text) | {"version": "../../x"}))
    elif what == "another overlay":
        disk.unlink()
        run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", disk, "1M"])
    elif what == "renamed":
        facts.parent.rename(disk.with_name("new.base"))
        disk.rename(disk.with_name("new"))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a qcow2", "not a disk that `invoke run --disk` made"),
        ("a raw file", "not a disk that `invoke run --disk` made"),
        ("of an earlier version", "not a disk that `invoke run --disk` made"),
        ("the released file", "not a disk that `invoke run --disk` made"),
        ("no facts", "not a disk that `invoke run --disk` made"),
        ("half of the facts", "base.json: no JSON"),
        ("facts that are a link", "base.json: a symbolic link"),
        ("wrong facts", "base.json: version: no version"),
        ("a folder", "no file, but a link, a folder or a device"),
        ("a link", "no file, but a link, a folder or a device"),
        ("a link to nothing", "no file, but a link, a folder or a device"),
        ("a pipe", "no file, but a link, a folder or a device"),
        ("no folder", "there is no folder"),
        ("a foreign base", "is there, and is not ours"),
        ("a base as a file", "is there, and is not ours"),
        ("only its base", "is what a disk stands on that is not here any more"),
        ("another overlay", "it stands on /etc/passwd, not on my.qcow2.base/disk"),
    ],
)
def test_file_that_is_not_ours_is_refused_and_stays_as_it_is(
    what: str, said: str, release: Release, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    disk = tmp_path / "mine/my.qcow2"
    foreign(what, disk, release)
    before = listing(tmp_path)
    with pytest.raises(InputError) as refused:
        find_base(disk)
    assert said in refused.value.message
    assert refused.value.hint
    assert listing(tmp_path) == before


def listing(folder: Path) -> dict[str, tuple[int, str]]:
    found = {str(path): path.lstat() for path in sorted(folder.rglob("*"))}
    files = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in found if Path(path).is_file()}
    return {path: (state.st_ino, files.get(path, "")) for path, state in found.items()}


def test_disk_that_was_renamed_with_its_base_is_told_the_way_out(release: Release, tmp_path: Path) -> None:
    foreign("renamed", tmp_path / "my.qcow2", release)
    disk = tmp_path / "new"
    with pytest.raises(InputError, match=r"it stands on my\.qcow2\.base/disk, not on new\.base/disk") as refused:
        find_base(disk)
    run(refused.value.hint.partition("tell it so: ")[2].split(), cwd=tmp_path)
    base = find_base(disk)
    assert base
    require_base(disk, base)
    assert content(disk, tmp_path / "y.raw") == (tmp_path / "x.raw").read_bytes()


@pytest.mark.parametrize("at", ["released_disk", "place", "_write_overlay", "sync_tree", "_give_name"])
def test_interruption_leaves_nothing_half_made(
    at: str, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    disk = tmp_path / "mine/my.qcow2"
    disk.parent.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(kept_disk, at, interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_kept(release, disk)
        assert not list(disk.parent.iterdir())
        # Killed at the same place: what is left there is taken for what it is by the next run.
        patched.setattr(kept_disk, "remove_tree", lambda path: None)
        with pytest.raises(KeyboardInterrupt):
            make_kept(release, disk)
    assert not disk.exists()
    assert find_base(disk) is None
    make_kept(release, disk)
    assert find_base(disk)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk with .* is full; nothing half-made was kept"),
        (errno.EIO, r"toolbox-.*qcow2 cannot be read, or its disk not be unpacked: \[Errno 5\]"),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
def test_what_this_host_cannot_do_is_not_said_of_the_file(
    kept: bool, number: int, said: str, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("vmimage.stages.verify.subject.open_disk", fail)
    (work := tmp_path / "work").mkdir()
    with pytest.raises(HostError, match=said) as told:
        take_overlay(release, work / "my.qcow2" if kept else None, work)
    assert "download" not in told.value.hint
    assert not list(work.glob("my.qcow2*"))


def test_file_that_came_meanwhile_is_not_written_over(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "my.qcow2"
    monkeypatch.setattr(kept_disk, "sync_tree", lambda path: disk.write_text("mine"))
    with pytest.raises(InputError, match="another process made it"):
        make_kept(release, disk)
    assert disk.read_text() == "mine"


MAKER = """
import sys
from pathlib import Path

from vmimage.commands.kept_disk import find_base, make_kept
from vmimage.stages.release.dist import choose
from vmimage.util.errors import InputError

dist, disk = map(Path, sys.argv[1:])
release = choose(dist, "toolbox", None)
assert find_base(disk) is None
print("ready", flush=True)
sys.stdin.readline()
try:
    make_kept(release, disk)
    print("made")
except InputError as error:
    print(error.message)
"""


def test_one_of_two_that_make_the_same_disk_at_once_makes_it(release: Release, tmp_path: Path) -> None:
    disk = tmp_path / "mine/my.qcow2"
    disk.parent.mkdir()
    argv = [sys.executable, "-c", MAKER, str(tmp_path / "dist"), str(disk)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": PROJECT}
    makers = [subprocess.Popen(argv, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for each in makers:
        assert each.stdout.readline() == "ready\n"
    for each in makers:
        each.stdin.write("\n")
        each.stdin.flush()
    said = sorted(each.communicate()[0].strip() for each in makers)
    assert said[2] == "made"
    assert all("another process made it" in each or "another process is making it" in each for each in said[:2])
    assert {path.name for path in disk.parent.rglob("*")} == {"my.qcow2", "my.qcow2.base", "disk", "base.json"}
    base = find_base(disk)
    assert base
    require_base(disk, base)
    assert content(disk, tmp_path / "y.raw") == (tmp_path / "x.raw").read_bytes()


def test_folder_of_another_process_that_is_at_work_is_left_alone(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "my.qcow2"
    monkeypatch.setattr(kept_disk, "sync_tree", lambda folder: refused(listing(folder)))

    def refused(before: object) -> None:
        with pytest.raises(InputError, match="another process is making it"):
            make_kept(release, disk)
        assert listing(folder_of(disk)) == before

    make_kept(release, disk)
    assert find_base(disk)
    with pytest.raises(InputError, match="another process made it"):
        make_kept(release, disk)
    assert find_base(disk)


def test_where_no_hard_links_can_be_it_is_copied(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    disk = tmp_path / "my.qcow2"
    monkeypatch.setattr(os, "link", refuse)
    make_kept(release, disk)
    shutil.rmtree(tmp_path / "dist")
    base = find_base(disk)
    assert base
    require_base(disk, base)


@pytest.mark.parametrize(
    ("image", "version"), [("dev-env", None), (None, "20261127-01234567.2"), ("toolbox", "20261126-01234567")]
)
def test_disk_on_another_release_than_was_named(
    image: str | None, version: str | None, release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "my.qcow2"
    make_kept(release, disk)
    chosen = options({"VMIMAGE_CACHE": f"{tmp_path}/cache", "VMIMAGE_DIST": f"{tmp_path}/dist"})
    with pytest.raises(BaseException, match=f"stands on toolbox {VERSION}, and no other") as refused:
        run_image(
            image, version, chosen, like="kvm", firmware="bios", ports=(1, 2, 3, 4), ssh_key=None, disk=str(disk),
            seed=None,
        )  # fmt: skip
    assert refused.value.code == 2  # type: ignore[attr-defined]
