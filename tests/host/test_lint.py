"""The project passes its own checks, and each of them can fail."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.sandbox import Sandbox, copy_project
from vmimage import PROJECT

FAULTS = {
    "ruff": ("vmimage/util/errors.py", "\nimport os\n"),
    "format": ("vmimage/cache/store.py", "\nx  =  1\n"),
    "mypy": ("vmimage/util/render.py", '\nnumber: int = "text"\n'),
    "imports": ("vmimage/cache/store.py", "\n\ndef late() -> None:\n    import vmimage.commands.build\n"),
    "length": ("bench/relay.py", "#\n" * 350),
    "shellcheck": ("provision/40-sshfs.sh", "\necho $undefined\n"),
    "schema": ("templates/images.schema.json", " "),
    "packer": ("packer/image.pkr.hcl.j2", "\nnonsense {}\n"),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The project; linters leave there what they remember of it."""
    folder = tmp_path_factory.mktemp("lint")
    copy_project(PROJECT, folder / "project")
    return Sandbox(folder / "project", folder / "cache", folder / "dist")


def test_project_is_clean(clean: Sandbox) -> None:
    done = clean.invoke("lint")
    assert done.returncode == 0, done.stderr


def test_every_check_notices_its_fault(clean: Sandbox, tmp_path: Path) -> None:
    # With what mypy knows from the first test, if that ran: it then reads what changed only.
    shutil.copytree(clean.project, tmp_path / "project", symlinks=True)
    sandbox = replace(clean, project=tmp_path / "project")
    for name, text in FAULTS.values():
        with (sandbox.project / name).open("a") as file:
            file.write(text)
    done = sandbox.invoke("lint")
    assert done.returncode == 5
    for check in FAULTS:
        assert f"\n{check}:\n" in done.stderr, check
