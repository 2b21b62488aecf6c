"""Commands that are killed at any moment: those that export, bundle, share, and update pins (see tests/kills.py)."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

from tests.kills import Command, Scene, require_survival
from tests.ssh_server import ssh_server
from tests.tools import context_in, host_key, packed, plan_of, step_into
from tests.upstream import Pages, project_of, upstream
from vmimage.access.confined import Folder
from vmimage.access.known_hosts import host_name, record
from vmimage.access.login import Address
from vmimage.access.notify import Notifier
from vmimage.access.share import _carry, make_share
from vmimage.commands.bundle import write_bundle
from vmimage.commands.session import session
from vmimage.commands.update.command import update_pins
from vmimage.pipeline import stages_of, the_stage
from vmimage.plan import PinnedFile
from vmimage.spec.load import load_spec
from vmimage.spec.model import AllFormats
from vmimage.stages.export import ExportStage, make_export
from vmimage.util.console import Console
from vmimage.util.settings import Options
from vmimage.vm.ssh import make_key

HOST_KEY = host_key("ed25519")
KINDS = ("qcow2", "vmdk", "raw.zst", "libvirt.box")
FILES = 12
"""That the machine writes into its share."""
TOOL = os.urandom(500_000)
NEWER = "v1.37.9"


class Export:
    """An export, as a build makes it from a sealed disk."""

    def prepare(self, scene: Scene) -> None:
        with (scene.folder / "disk.raw").open("wb") as file:
            file.write(os.urandom(2 << 20))
            file.truncate(8 << 20)

    def run(self, scene: Scene) -> None:
        stage = replace(
            the_stage(stages_of(plan_of("toolbox"), context_in(scene.folder)), ExportStage),
            formats=AllFormats.model_validate({kind: {} for kind in KINDS}),
        )
        store, step = scene.store, step_into([])
        store.sweep()
        store.get_or_make("export", {}, lambda work: make_export(stage, scene.folder / "disk.raw", work, step), step)

    def check(self, scene: Scene) -> None:
        scene.require_whole_cache()

    def check_next(self, scene: Scene) -> None:
        (found,) = scene.store.results()
        assert set(found.meta["files"]) == set(KINDS)


class Bundle:
    """A bundle of pins, one of which is taken out of an archive."""

    def prepare(self, scene: Scene) -> None:
        (scene.folder / "archive.tar.gz").write_bytes(gzip.compress(packed({"tool": TOOL})))
        (scene.folder / "k3s").write_bytes(TOOL)

    def run(self, scene: Scene) -> None:
        files = {"kubectl": scene.folder / "archive.tar.gz", "k3s": scene.folder / "k3s"}
        pins = [_pin(name, path, ("tool",) if name == "kubectl" else ()) for name, path in files.items()]
        plan: Any = SimpleNamespace(name="box", files=pins)
        with session(scene.options, log="bundle") as (_, store):
            store.sweep()
            with store.workspace("bundle") as work:
                write_bundle(plan, files, scene.folder / "update.tar", work)

    def check(self, scene: Scene) -> None:
        assert {path.name for path in scene.folder.iterdir() if not path.name.startswith(".")} <= {
            *("archive.tar.gz", "k3s", "update.tar", "cache"),
        }
        if (scene.folder / "update.tar").exists():
            self.check_next(scene)

    def check_next(self, scene: Scene) -> None:
        with tarfile.open(scene.folder / "update.tar") as tar:
            held = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
        assert (held["kubectl"], held["k3s"]) == (TOOL, TOOL)


def _pin(name: str, path: Path, members: tuple[str, ...]) -> PinnedFile:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PinnedFile(name=name, version="v1", arch="amd64", sha256=digest, sources=(), members=members)


class Update:
    """`invoke update`: images.yaml is the old one or the new one, to the byte."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def prepare(self, scene: Scene) -> None:
        project_of(scene.folder / "project")

    def run(self, scene: Scene) -> None:
        chosen = Options(
            cache=scene.folder / "cache",
            dist=scene.folder / "dist",
            state=scene.folder / "state",
            upstreams=tuple(self._pages.upstreams),
            spec=self._path(scene),
        )
        update_pins(["kubectl"], chosen, check=False, json=False)

    def check(self, scene: Scene) -> None:
        assert load_spec(self._path(scene)).pins["kubectl"].version in (_pinned(), NEWER)

    def check_next(self, scene: Scene) -> None:
        assert load_spec(self._path(scene)).pins["kubectl"].version == NEWER

    def _path(self, scene: Scene) -> Path:
        return scene.folder / "project" / "images.yaml"


@cache
def _pinned() -> str:
    return load_spec(Options(cache=Path(), dist=Path(), state=Path()).spec).pins["kubectl"].version


class Share:
    """A share in which the machine replaces a file again and again: each one of it is whole."""

    def prepare(self, scene: Scene) -> None:
        (scene.folder / "shared").mkdir()
        (scene.folder / "shared" / "file").write_bytes(_content(0))
        (scene.folder / "keys").mkdir()
        make_key(scene.folder / "keys")
        record(scene.options.known_hosts, host_name("127.0.0.1", scene.port), [HOST_KEY])

    def run(self, scene: Scene) -> None:
        share = make_share(str(scene.folder / "shared"), None, read_only=False, notify=False)
        address = Address(port=scene.port, key=scene.folder / "keys/id_ed25519")
        with contextlib.closing(Folder(share.source)) as folder:
            _carry(share, address, scene.options.known_hosts, folder, Console(), Notifier(share.source), again=False)

    def check(self, scene: Scene) -> None:
        assert (scene.folder / "shared" / "file").read_bytes() in map(_content, range(FILES + 1))

    def check_next(self, scene: Scene) -> None:
        assert (scene.folder / "shared" / "file").read_bytes() == _content(FILES)
        assert {path.name for path in scene.folder.iterdir()} <= {"shared", "keys", "state", "cache"}


def _content(number: int) -> bytes:
    return b"%d\n" % number * 20_000


def as_machine(channel: paramiko.Channel, command: bytes) -> None:
    """Do what the commands of `invoke share` do in a machine, where sshfs is a program that writes."""
    if command.startswith(b"exec sshfs"):
        with contextlib.closing(paramiko.SFTPClient(channel)) as client:
            for number in range(1, FILES + 1):
                with client.open("new", "w") as file:
                    file.write(_content(number))
                client.posix_rename("new", "file")
        channel.get_transport().close()
        return
    if b"has_content=" in command:
        channel.sendall(b"1000\n1000\n")
    channel.send_exit_status(0)
    channel.shutdown_write()


@pytest.fixture(scope="module")
def commands() -> Iterator[dict[str, tuple[Command, int]]]:
    """Name -> the command, and the port of what it talks to."""
    with upstream() as pages, ssh_server(HOST_KEY, work=as_machine) as port:
        pages.kubectl(NEWER)
        yield {"export": (Export(), 0), "bundle": (Bundle(), 0), "update": (Update(pages), 0), "share": (Share(), port)}


@pytest.mark.parametrize("name", ["export", "bundle", "update", "share"])
def test_killed_command_leaves_the_old_or_the_new(
    name: str, commands: dict[str, tuple[Command, int]], tmp_path: Path
) -> None:
    command, port = commands[name]
    require_survival(name, command, port, tmp_path)
    shutil.rmtree(tmp_path)
