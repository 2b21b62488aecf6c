"""Real builds, in copies of the project with a cache and a dist/ of their own. One build serves all tests of an image.

A machine that is emulated by one processor leaves the others idle: the tests of toolbox and those of dev-env run in
two processes (`--dist=loadgroup`), which share nothing.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox import Done, Sandbox, copy_project, event
from vmimage import PROJECT


# pytest-xdist reads the groups in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests by the image that they build."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("dev-env" if item.path.stem == "test_dev_env" else "toolbox"))


@contextmanager
def empty_sandbox(root: Path) -> Iterator[Sandbox]:
    """Yield a place to build in, in which nothing runs at the end."""
    copy_project(PROJECT, root / "project")
    sandbox = Sandbox(root / "project", root / "cache", root / "dist")
    yield sandbox
    assert sandbox.nothing_runs(), sandbox.processes()


@dataclass(frozen=True)
class Built:
    """What became of the builds: the events of the runs that were killed, and the two that came after them."""

    killed: list[dict[str, Any]]
    runs: tuple[Done, Done]


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """An empty place to build toolbox in."""
    with empty_sandbox(tmp_path_factory.mktemp("e2e")) as sandbox:
        yield sandbox


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
