"""Commands that are killed at any moment: what is left is the old or the new, and the next run works and tidies up.

How they are killed is in tests/kills.py; those that export, bundle, share and update are in test_kills_more.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.hostile_server import hostile
from tests.kills import RESULTS, Command, Scene, require_survival
from tests.ssh_server import ssh_server
from tests.tools import host_key, released, seed_texts
from tests.unit.test_fetch_hostile import BODY, OK, pinned
from tests.unit.test_kubeconfig import K3S
from vmimage.access.known_hosts import host_name, record
from vmimage.access.kubeconfig_file import read
from vmimage.access.seed import make_seed
from vmimage.commands.cache import clean_cache, entries, show_cache
from vmimage.commands.fetch import fetched
from vmimage.commands.kubeconfig import add_context
from vmimage.commands.session import session
from vmimage.commands.where import Where
from vmimage.stages.release.dist import latest_version, publish_release, publishing, releases, sweep
from vmimage.stages.release.mark import open_dist
from vmimage.util.files import sha256_file
from vmimage.vm.ssh import make_key

OLD, NEW = "20261127-01234567", "20261128-89abcdef"
HOST_KEY = host_key("ed25519")
MINE = "# mine\nclusters: [{name: mine, cluster: {server: 'https://mine.invalid'}}]\n"


class Clean:
    keep = ""

    def prepare(self, scene: Scene) -> None:
        scene.fill_cache()

    def run(self, scene: Scene) -> None:
        clean_cache(scene.options, keep=self.keep, releases=False)

    def check(self, scene: Scene) -> None:
        scene.require_whole_cache()

    def check_next(self, scene: Scene) -> None:
        assert not entries(scene.store)


class CleanKeep(Clean):
    keep = "100K"

    def check_next(self, scene: Scene) -> None:
        found = entries(scene.store)
        assert sum(each.size for each in found) <= 100 << 10
        assert found


class ShowCache(Clean):
    def run(self, scene: Scene) -> None:
        show_cache(scene.options, json=False)

    def check_next(self, scene: Scene) -> None:
        assert len(scene.store.results()) == RESULTS


class Fetch:
    def prepare(self, scene: Scene) -> None:
        pass

    def run(self, scene: Scene) -> None:
        with session(scene.options, log="fetch") as (console, store):
            store.sweep()
            plan: Any = SimpleNamespace(files=[pinned(f"http://127.0.0.1:{scene.port}/tool")])
            fetched(plan, store, console)

    def check(self, scene: Scene) -> None:
        scene.require_whole_cache()

    def check_next(self, scene: Scene) -> None:
        assert scene.store.file(hashlib.sha256(BODY).hexdigest()).read_bytes() == BODY
        assert not list((scene.folder / "cache/partial").iterdir())


class Seed:
    def prepare(self, scene: Scene) -> None:
        make_seed(scene.folder / "seed.iso", public_keys=["old"], hostname="box", user_data=None, force=False)

    def run(self, scene: Scene) -> None:
        make_seed(scene.folder / "seed.iso", public_keys=["new"], hostname="box", user_data=None, force=True)

    def check(self, scene: Scene) -> None:
        assert re.search("old|new", seed_texts(scene.folder / "seed.iso")["user-data"])

    def check_next(self, scene: Scene) -> None:
        assert "new" in seed_texts(scene.folder / "seed.iso")["user-data"]


class Kubeconfig:
    def prepare(self, scene: Scene) -> None:
        (scene.folder / "config").write_text(MINE)
        (scene.folder / "keys").mkdir()
        make_key(scene.folder / "keys")
        record(scene.options.known_hosts, host_name("127.0.0.1", scene.port), [HOST_KEY])

    def run(self, scene: Scene) -> None:
        where = Where("127.0.0.1", scene.port, str(scene.folder / "keys/id_ed25519"), None)
        path = str(scene.folder / "config")
        add_context("box", where, scene.options, kubeconfig=path, use=True, show=False, force=False)

    def check(self, scene: Scene) -> None:
        text = (scene.folder / "config").read_text()
        assert text == MINE or read(scene.folder / "config")["current-context"] == "box"

    def check_next(self, scene: Scene) -> None:
        found = read(scene.folder / "config")
        assert [each["name"] for each in found["clusters"]] == ["mine", "box"]
        assert not (scene.folder / "config.lock").exists()


class Release:
    def prepare(self, scene: Scene) -> None:
        open_dist(scene.options.dist)
        publish_release(scene.options.dist / "box", OLD, lambda work: _filled(work, OLD))

    def run(self, scene: Scene) -> None:
        folder = scene.options.dist / "box"
        sweep(scene.options.dist)
        with publishing(folder) as alone:
            if alone and not (folder / NEW).exists():
                publish_release(folder, NEW, lambda work: _filled(work, NEW))

    def check(self, scene: Scene) -> None:
        latest = latest_version(scene.options.dist / "box")
        found = {release.version: release for release in releases(scene.options.dist)}
        assert latest in found
        for release in found.values():
            for kind, facts in release.manifest.files.items():
                assert sha256_file(release.require_file(kind)) == facts.sha256

    def check_next(self, scene: Scene) -> None:
        self.check(scene)
        assert {path.name for path in (scene.options.dist / "box").iterdir()} == {OLD, NEW, "latest"}


def _filled(work: Path, version: str) -> dict[str, object]:
    made = released(work.parent.parent.parent / f"made-{os.getpid()}-{version}", "box", version, os.urandom(3 << 20))
    shutil.copytree(made, work, dirs_exist_ok=True)
    return dict(json.loads((work / "manifest.json").read_text()))


COMMANDS: dict[str, Command] = {
    "clean": Clean(),
    "clean --keep": CleanKeep(),
    "cache": ShowCache(),
    "fetch": Fetch(),
    "seed": Seed(),
    "kubeconfig": Kubeconfig(),
    "release": Release(),
}


def slowly(connection: socket.socket) -> None:
    connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(BODY))
    for at in range(0, len(BODY), 1000):
        connection.sendall(BODY[at : at + 1000])
        time.sleep(0.02)


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """What `fetch` and `kubeconfig` talk to."""
    with hostile(lambda _: [slowly]) as mirror, ssh_server(HOST_KEY, answer=K3S.encode()) as machine:
        yield {"fetch": mirror.port, "kubeconfig": machine}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_command_leaves_the_old_or_the_new(name: str, ports: dict[str, int], tmp_path: Path) -> None:
    require_survival(name, COMMANDS[name], ports.get(name, 0), tmp_path)
