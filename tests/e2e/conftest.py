"""Real builds, in a copy of the project with a cache and a dist/ of its own. One build serves all tests.

A machine that is emulated by one processor leaves the others idle. What needs none of this project's cache runs there
meanwhile: `begin` starts it, and the tests that look at it come last.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.importers import Tree, VirtualBox, install_libvirt, install_virtualbox
from tests.sandbox import Done, Sandbox, copy_project, event, finished
from vmimage import PROJECT
from vmimage.util.run import kill_running, run


def begin(request: pytest.FixtureRequest, name: str) -> None:
    """Set a fixture of the session up now, if any test of this run needs it."""
    if any(name in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue(name)


@dataclass(frozen=True)
class Built:
    """What became of the builds: the events of the runs that were killed, and the two that came after them."""

    killed: list[dict[str, Any]]
    runs: tuple[Done, Done]


@dataclass(frozen=True)
class Importers:
    """What is being unpacked, one after the other."""

    virtualbox: Future[VirtualBox]
    libvirt: Future[Tree]


@pytest.fixture(scope="session")
def importers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Importers]:
    """Programs that import images; they are unpacked beside what comes next."""
    folders = [tmp_path_factory.mktemp(name) for name in ("virtualbox", "libvirt")]
    with ThreadPoolExecutor(max_workers=1) as pool:
        found = Importers(pool.submit(install_virtualbox, folders[0]), pool.submit(install_libvirt, folders[1]))
        yield found
        found.libvirt.cancel()
        while not (found.virtualbox.done() and found.libvirt.done()):
            kill_running()
            time.sleep(0.1)


@pytest.fixture(scope="session")
def sandbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """An empty place to build in."""
    begin(request, "importers")
    root = tmp_path_factory.mktemp("e2e")
    copy_project(PROJECT, root / "project")
    sandbox = Sandbox(root / "project", root / "cache", root / "dist")
    yield sandbox
    assert sandbox.nothing_runs(), sandbox.processes()


@pytest.fixture(scope="session")
def built(sandbox: Sandbox) -> Built:
    """Toolbox, built from an empty cache by two runs at once, which came after some that were killed."""
    killed = (("base", "installing"), ("bake", "boot the base"), ("export", "ova"))
    seen = list[dict[str, Any]]()
    for stage, what in killed:
        status, told = sandbox.invoke_until(event(stage, what), signal.SIGKILL, "build-image", "toolbox")
        assert status == -signal.SIGKILL
        assert sandbox.nothing_runs(), f"killed in {stage}: {sandbox.processes()}"
        assert sandbox.versions() == [], f"killed in {stage}"
        assert [path.name.split("-")[0] for path in (sandbox.cache / "work").iterdir()] == [stage]
        seen += told
    # Ctrl-C while machines boot: none is waited for, nothing is left.
    status, told = sandbox.invoke_until(event("verify", "boot as"), signal.SIGINT, "build-image", "toolbox")
    assert status == 130
    assert sandbox.nothing_runs(), sandbox.processes()
    assert not list((sandbox.cache / "work").iterdir())
    seen += told
    build = ("build-image", "toolbox", "--json")
    return Built(killed=seen, runs=sandbox.invoke_both(sandbox.start(*build), *build))


@pytest.fixture(scope="session")
def release(built: Built) -> Path:
    """The folder of the release."""
    for done in built.runs:
        assert done.returncode == 0, done.stderr
    (found,) = {done.event("result")["release"] for done in built.runs}
    return Path(found)


def released_file(release: Path, kind: str) -> Path:
    """Return the file of a release in some format."""
    return release / str(json.loads((release / "manifest.json").read_text())["files"][kind]["name"])


@dataclass(frozen=True)
class ByItself:
    """A file that is being verified by itself: the command ends some time."""

    file: Path
    place: Sandbox
    done: Future[Done]


@pytest.fixture(scope="session")
def by_itself(release: Path, sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByItself]:
    """The released disk in another format, and `invoke verify` of it, which goes on beside what comes next."""
    folder = tmp_path_factory.mktemp("by-itself")
    file = folder / "toolbox.vhdx"
    run(["qemu-img", "convert", "-O", "vhdx", released_file(release, "qcow2"), file])
    place = Sandbox(sandbox.project, folder / "cache", folder / "dist")
    process = place.start("verify", str(file), "--json")
    with ThreadPoolExecutor(max_workers=1) as pool:
        # Its pipes are read meanwhile: it would wait for that when they are full.
        done = pool.submit(finished, process)
        yield ByItself(file, place, done)
        if not done.done():
            process.terminate()
