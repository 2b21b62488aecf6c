"""Commands that are killed at any moment: what is left is the old or the new, and the next run works and tidies up.

Each is killed in a process of its own, after a random part of the time that it takes. VMIMAGE_KILL_SEED tries other
moments; a failure names its seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.hostile_server import hostile
from tests.ssh_server import ssh_server
from tests.tools import host_key, released, seed_texts, step_into
from tests.unit.test_fetch_hostile import BODY, OK, pinned
from tests.unit.test_kubeconfig import K3S
from vmimage.access.known_hosts import host_name, record
from vmimage.access.kubeconfig_file import read
from vmimage.access.seed import make_seed
from vmimage.cache.store import Store
from vmimage.commands.cache import clean_cache, entries, show_cache
from vmimage.commands.fetch import fetched
from vmimage.commands.kubeconfig import add_context
from vmimage.commands.session import session
from vmimage.commands.where import Where
from vmimage.stages.release.dist import latest_version, publish_release, publishing, releases, sweep
from vmimage.stages.release.mark import MARK, open_dist
from vmimage.util.files import sha256_file
from vmimage.util.settings import Options
from vmimage.vm.ssh import make_key

SEED = int(os.environ.get("VMIMAGE_KILL_SEED", "20261128"))
ROUNDS = 5
RESULTS = 12
OLD, NEW = "20261127-01234567", "20261128-89abcdef"
HOST_KEY = host_key("ed25519")
MINE = "# mine\nclusters: [{name: mine, cluster: {server: 'https://mine.invalid'}}]\n"


def began(run: Callable[[], object]) -> int:
    """Run something in a process of its own; returns its id once it has begun."""
    told, tells = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            for number in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.write(tells, b"x")
            run()
        os._exit(0)
    os.close(tells)
    os.read(told, 1)
    os.close(told)
    return child


def killed(run: Callable[[], object], signum: int, seconds: float) -> None:
    child = began(run)
    time.sleep(seconds)
    os.kill(child, signum)
    os.waitpid(child, 0)


def time_of(run: Callable[[], object]) -> float:
    started = time.monotonic()
    os.waitpid(began(run), 0)
    return time.monotonic() - started


@dataclass
class Scene:
    """A folder with a cache, releases, and the user's files; made anew for each kill."""

    folder: Path
    port: int = 0

    @property
    def options(self) -> Options:
        return Options(cache=self.folder / "cache", dist=self.folder / "dist", state=self.folder / "state")

    @property
    def store(self) -> Store:
        return Store(self.folder / "cache")

    def fill_cache(self) -> None:
        store = self.store
        for number in range(RESULTS):
            store.get_or_make("stage", {"a": number}, _made, step_into([]))
        store.close()

    def require_whole_cache(self) -> None:
        store = self.store
        for found in store.results():
            assert store.intact(found)
        for path in (store.root / "files").iterdir():
            assert sha256_file(path) == path.name


def _made(work: Path) -> dict[str, object]:
    for name in ("a", "b"):
        (work / name).write_bytes(os.urandom(20_000))
    return {}


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


def _age(folder: Path) -> None:
    """Let what waits beside files be so old that nobody can be about to lock it."""
    for path in folder.rglob(".*vmimage-*"):
        os.utime(path, (0, 0))


COMMANDS: dict[str, Any] = {
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
    command, chance = COMMANDS[name], random.Random(f"{SEED} {name}")  # noqa: S311 - moments, no secrets
    for number in range(ROUNDS + 1):
        scene = Scene(tmp_path / str(number), ports.get(name, 0))
        scene.folder.mkdir()
        command.prepare(scene)

        def run(scene: Scene = scene) -> None:
            command.run(scene)

        if not number:
            whole = time_of(run)
            continue
        signum = chance.choice([signal.SIGKILL, signal.SIGTERM])
        moment = chance.uniform(0, 1.1) * whole
        killed(run, signum, moment)
        try:
            command.check(scene)
            _age(scene.folder)
            time_of(run)
            command.check(scene)
            command.check_next(scene)
            assert not [path.name for path in scene.folder.rglob(".*") if path.name != MARK], "a file is left"
            assert not list((scene.folder / "cache/work").glob("*")), "a work folder is left"
        except BaseException as error:
            error.add_note(f"{name}: VMIMAGE_KILL_SEED={SEED}: {signum.name} after {moment:.3f} of {whole:.3f} s")
            raise
