"""What a command imports, which is most of the time of those that people type all day.

A heavy library is imported by the function that needs it, so that no other command loads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pytest

from tests.tools import released, step_into
from vmimage import PROJECT
from vmimage.cache.opened import open_store
from vmimage.pipeline import build_context, plan_image, stages_of
from vmimage.stages.bake.stage import BakeStage
from vmimage.stages.export import ExportStage
from vmimage.stages.release.mark import open_dist
from vmimage.stages.release.version import version_of
from vmimage.stages.stage import StoredStage
from vmimage.stages.verify.stage import VerifyStage
from vmimage.stages.verify.subject import VERDICT
from vmimage.util import settings

WORKS = {
    *("cryptography", "cyclonedx", "debian", "debsbom", "jinja2", "license_expression", "packerpy"),
    *("paramiko", "pycdlib", "pytest", "qemu", "requests", "ruamel", "spdx_tools", "squarify", "urllib3", "watchfiles"),
}
"""Libraries that do a part of the work: loaded by nothing that only looks at what is there."""
READS_NOTHING = WORKS | {"deflate", "pydantic", "rich", "vmimage.plan", "vmimage.spec", "zstandard"}
"""And those that read images.yaml, which is not read to tell what the commands are."""
BUILDS = {"vmimage.pipeline", "vmimage.stages.bake", "vmimage.stages.base", "vmimage.stages.fetch"}
_IMPORTED = re.compile(r"^import time: .*\| +(\S+)$", re.MULTILINE)


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    own = {"VMIMAGE_CACHE": str(tmp_path / "cache"), "VMIMAGE_DIST": str(tmp_path / "dist")}
    return {**os.environ, **own, "VMIMAGE_ACCELERATOR": "tcg"}


def loaded_of(wanted: set[str], environment: Mapping[str, str], *args: str) -> tuple[list[str], str]:
    """Run `invoke ARGS`; returns which of these modules it imported, and its answer."""
    argv = [sys.executable, "-X", "importtime", "-m", "invoke", *args]
    done = subprocess.run(argv, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    imported = set(_IMPORTED.findall(done.stderr))
    assert {"invoke", "vmimage.commands.chosen"} <= imported, "nothing was noted"
    return sorted(wanted & imported), done.stdout


@pytest.mark.parametrize("args", [["--list"], ["plan", "--help"]])
def test_list_of_commands_loads_none(args: list[str], environment: Mapping[str, str]) -> None:
    assert loaded_of(READS_NOTHING | BUILDS, environment, *args)[0] == []


@pytest.mark.parametrize("args", [["list"], ["cache"]])
def test_a_look_at_what_is_there_loads_nothing_that_builds(args: list[str], environment: Mapping[str, str]) -> None:
    assert loaded_of(WORKS | BUILDS, environment, *args)[0] == []


def test_plan_loads_nothing_that_does_what_it_tells(environment: Mapping[str, str]) -> None:
    makers = {"vmimage.stages.bake.bake", "vmimage.stages.verify.verdict", "vmimage.stages.release.contents"}
    loaded, said = loaded_of(WORKS | makers, environment, "plan", "toolbox")
    assert "kubectl" in said
    assert loaded == []


def test_build_of_what_is_there_loads_nothing_that_makes(environment: Mapping[str, str]) -> None:
    released_before(environment)
    loaded, said = loaded_of(WORKS | {"vmimage.stages.bake.bake"}, environment, "build-image", "toolbox")
    assert "released: " in said
    assert loaded == []


def released_before(environment: Mapping[str, str]) -> None:
    """Leave what a build of toolbox leaves, with other bytes in it."""
    chosen = settings.options(environment)
    store, plan = open_store(chosen), plan_image("toolbox", chosen)
    body, files, step = b"an image", dict[str, dict[str, object]](), step_into([])
    digest = hashlib.sha256(body).hexdigest()
    for kind in plan.image.formats.names:
        files[kind] = {"name": f"toolbox-amd64.{kind}", "bytes": len(body), "sha256": digest}
    for file in plan.files:
        store.file(file.sha256).parent.mkdir(exist_ok=True)
        store.file(file.sha256).write_bytes(b"a program")
    verdict = {
        "passed": True,
        "files": {kind: {"sha256": digest} for kind in files},
        "checks": [{"name": "qcow2-virtio-bios"}],
    }
    key = ""
    for stage in stages_of(plan, build_context(chosen, store)):
        if not isinstance(stage, StoredStage):
            continue

        def make(work: Path, stage: StoredStage = stage) -> Mapping[str, object]:
            if isinstance(stage, VerifyStage):
                (work / VERDICT).write_text(json.dumps(verdict))
            return {"build_key": "ssh-ed25519 AAAA"} if isinstance(stage, BakeStage) else {"files": files}

        below = stage.made_from.result if stage.made_from else None
        store.get_or_make(stage.name, stage.inputs, make, step, below=below)
        key = stage.key if isinstance(stage, ExportStage) else key
    open_dist(chosen.dist)
    # Only its qcow2 is there: the verdict's other files are of the same bytes.
    released(chosen.dist, "toolbox", version_of(key, date.today()), body, verdict=verdict)  # noqa: DTZ011


def test_paramiko_prints_no_traceback_whoever_opens_a_session() -> None:
    told = "import logging, vmimage.access.share; print(logging.getLogger('paramiko.transport').getEffectiveLevel())"
    done = subprocess.run([sys.executable, "-c", told], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{logging.CRITICAL}\n"
