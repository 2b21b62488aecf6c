"""Container images of the guest's command, on the stand-in for k3s, which keeps names and labels and no layers."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import zstandard
from dev_env import Failure, archives, doctor, images, load

from tests.k3s_stand_in import build

PAUSE, SHIPPED, MINE = "docker.io/rancher/mirrored-pause:3.6", "localhost/hello:1", "docker.io/my/shop:1"


def archive(path: Path, *tags: str, note: str = "") -> Path:
    """Write an archive of images without layers; `note` makes it another one."""
    config = json.dumps({"note": note or path.name}).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [tag], "Layers": []} for tag in tags]).encode()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in (("config.json", config), ("manifest.json", manifest)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = file.getvalue()
    if path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the machine brings, imported but not pinned by anybody."""
    programs = tmp_path / "bin"
    programs.mkdir()
    build(programs / "k3s")
    (programs / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (programs / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    data = tmp_path / "data"
    monkeypatch.setenv("K3S_DATA_DIR", str(data))
    folder = data / "agent" / "images"
    folder.mkdir(parents=True)
    archive(folder / "airgap.tar.zst", PAUSE)
    archive(folder / "hello.tar", SHIPPED)
    monkeypatch.setattr(archives, "FOLDER", folder)
    monkeypatch.setattr(archives, "INDEX", tmp_path / "index" / "images.json")
    archives.index()
    for name in ("airgap.tar.zst", "hello.tar"):
        load.bring(folder / name, print)
    return folder


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_names_in_an_archive_are_those_of_containerd(tmp_path: Path, suffix: str) -> None:
    names = ("busybox:1", "my/shop:1", "localhost/a:1", "my.example/b:2", "host:5000/c:3")
    found = archives.names_in(archive(tmp_path / f"images{suffix}", *names))
    assert found == ["docker.io/library/busybox:1", "docker.io/my/shop:1", *names[2:]]


@pytest.mark.parametrize("data", [b"", b"no archive", b"\x28\xb5\x2f\xfd....", b"\x1f\x8b...."])
def test_what_is_no_archive_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(Failure, match=r"no archive of images|has no manifest"):
        archives.names_in(tmp_path / "file")


def test_index_is_read_by_everybody_and_follows_an_archive_that_is_replaced(machine: Path) -> None:
    assert archives.brought() == {PAUSE: machine / "airgap.tar.zst", SHIPPED: machine / "hello.tar"}
    archive(machine / "airgap.tar.zst", PAUSE, "docker.io/rancher/more:2")
    archives.index()
    assert set(archives.brought()) == {PAUSE, SHIPPED, "docker.io/rancher/more:2"}


def test_loaded_images_are_pinned_and_named(machine: Path, tmp_path: Path) -> None:
    said: list[str] = []
    file = archive(tmp_path / "shop.tar.gz", "my/shop:1")
    assert load.load([file], said.append) == [MINE]
    assert said
    assert "shop.tar.gz: 0 of 0 MiB, 0 s" in said[0], "a small one"
    assert {image.names: image.pinned for image in images.listed()}[(MINE,)]
    assert load.load([file], said.append) == [MINE], "the same again is named, too"
    assert MINE not in [str(image) for image in images.unused()]


def test_wrong_files_to_load_are_told(machine: Path, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="there is no file"):
        load.load([tmp_path / "none"], print)
    with pytest.raises(Failure, match="no file is named"):
        load.load([], print)
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(Failure, match="could not be loaded"):
        load.load([tmp_path / "text"], print)


def test_what_the_machine_brings_is_pinned_and_never_proposed_for_removal(machine: Path, tmp_path: Path) -> None:
    assert images.unpinned() == [PAUSE, SHIPPED]
    assert images.unused() == [], "also while they are not pinned"
    images.pin(images.unpinned())
    assert images.unpinned() == []
    load.bring(archive(tmp_path / "other.tar", "my.example/other:1"), print)
    (other,) = images.unused()
    assert str(other) == "my.example/other:1"
    images.remove([other])
    assert images.unused() == []


def test_doctor_names_what_is_gone_and_brings_it_back(machine: Path) -> None:
    images.pin(images.unpinned())
    images.remove([image for image in images.listed() if PAUSE in image.names])
    said: list[str] = []
    faults = {check.name: fault for check, fault in doctor.examine(said.append, fix=False)}
    assert faults["the images that the machine brings are there"] == f"gone: {PAUSE}"
    assert said == []
    (check,) = [check for check in doctor.checks() if "images" in check.name]
    assert check.fix
    check.fix(said.append)
    assert check.found() == ""
    assert images.unpinned() == []
