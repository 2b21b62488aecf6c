"""Real builds, in a copy of the project with a cache and a dist/ of its own. One build serves all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox import Done, Sandbox, copy_project, event
from vmimage import PROJECT


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """An empty place to build in."""
    root = tmp_path_factory.mktemp("e2e")
    copy_project(PROJECT, root / "project")
    sandbox = Sandbox(root / "project", root / "cache", root / "dist")
    yield sandbox
    assert sandbox.nothing_runs(), sandbox.processes()


@pytest.fixture(scope="session")
def built(sandbox: Sandbox) -> Done:
    """Toolbox, built from an empty cache by a run that came after some that were killed, in one stage each."""
    killed = (("base", "installing"), ("bake", "boot the base"), ("export", "ova"), ("verify", "boot as"))
    for stage, what in killed:
        status = sandbox.invoke_until(event(stage, what), signal.SIGKILL, "build-image", "toolbox")
        assert status == -signal.SIGKILL
        assert sandbox.nothing_runs(), f"killed in {stage}: {sandbox.processes()}"
        assert sandbox.versions() == [], f"killed in {stage}"
        assert [path.name.split("-")[0] for path in (sandbox.cache / "work").iterdir()] == [stage]
    return sandbox.invoke("build-image", "toolbox", "--json")


@pytest.fixture(scope="session")
def release(built: Done) -> Path:
    """The folder of the release."""
    assert built.returncode == 0, built.stderr
    return Path(built.event("result")["release"])
