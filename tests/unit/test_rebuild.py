"""`invoke rebuild`: whether this checkout is what a release was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tools import context_in, plan_of, released
from vmimage.commands.rebuild import REMADE, digest_lines, other_debs, recorded, require_same_sources
from vmimage.pipeline import stages_of
from vmimage.plan import Plan
from vmimage.stages.release.manifest import MANIFEST, Manifest, manifest_of
from vmimage.util.errors import InputError

COMMIT = "c0" * 20
LINES = ("deb http://a.example/debian trixie main",)


def then(project: Path) -> Plan:
    """Return the plan of a release: another week, mirror and tools than today's."""
    plan = plan_of(None, project, debian_mirrors=LINES)
    return replace(plan, period="2026-W47", tools={**plan.tools, "mmdebstrap": "1.2", "qemu-img": "7.0"})


def manifest(plan: Plan, folder: Path, **changes: object) -> Manifest:
    stages = {stage.name: stage for stage in stages_of(plan, context_in(folder)) if stage.name in REMADE}
    facts: dict[str, Any] = {
        "stages": {name: {"key": stage.key} for name, stage in stages.items()},
        "inputs": json.loads(json.dumps({name: stage.inputs for name, stage in stages.items()})),
        "git": {"commit": COMMIT},
        **changes,
    }
    made = released(folder / "dist", "tiny", "20261128-01234567", b"x", **facts)
    return manifest_of(json.loads((made / MANIFEST).read_text()))


def checked(project: Path, folder: Path, found: Manifest, **more: object) -> list[str]:
    plan = plan_of(None, project, **{"debian_mirrors": LINES, **more})
    return require_same_sources(plan, context_in(folder), recorded(found))


def test_same_sources_on_another_host_in_another_week_are_told_apart_by_that_only(
    project: Path, tmp_path: Path
) -> None:
    found = manifest(then(project), tmp_path)
    warnings = checked(project, tmp_path, found, debian_mirrors=["deb http://b.example/debian trixie main"])
    tools = plan_of(None, project).tools
    assert sorted(warnings) == [
        "Debian's packages come from another mirror than they did",
        f"mmdebstrap is {tools['mmdebstrap']} here, and was 1.2",
        f"qemu-img is {tools['qemu-img']} here, and was 7.0",
    ]


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("provision/base.sh", "provision/base.sh changed"),
        ("provision/99-seal.sh", "provision/99-seal.sh changed"),
        ("provision/20-tool.sh", "a provision step, or a file that one lays"),
        ("provision/files/20-tool/etc/tool.conf", "a provision step, or a file that one lays"),
        ("templates/appliance.ovf.j2", "templates/appliance.ovf.j2 changed"),
    ],
)
def test_other_sources_are_refused_with_the_commit_that_has_them(
    project: Path, tmp_path: Path, file: str, told: str
) -> None:
    found = manifest(then(project), tmp_path)
    (project / file).write_text("other\n")
    with pytest.raises(InputError) as refused:
        checked(project, tmp_path, found)
    assert told in refused.value.message
    assert COMMIT in refused.value.hint


@pytest.mark.parametrize("git", [{}, None, [], {"commit": 5}, {"commit": "-rf"}])
def test_commit_that_is_none_is_not_named(project: Path, tmp_path: Path, git: object) -> None:
    assert recorded(manifest(then(project), tmp_path, git=git)).commit == ""


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        [],
        {},
        {"base": {"period": "x"}},
        {"base": {}, "bake": {}, "export": {}},
        {"base": {"period": 5}, "bake": {}, "export": {}},
        {"base": {"period": "x", "mirrors": [1]}, "bake": {}, "export": {}},
        {"base": {"period": "x", "tools": {"a": 1}}, "bake": {}, "export": {}},
        {"base": {"period": "x"}, "bake": [], "export": {}},
    ],
)
def test_manifest_that_tells_too_little_is_refused(project: Path, tmp_path: Path, inputs: object) -> None:
    with pytest.raises(InputError, match="does not tell what the release was made from"):
        recorded(manifest(then(project), tmp_path, inputs=inputs))


@pytest.mark.parametrize("packages", [{"a\nPackage: *": "1"}, {"a": "1\nPin: x"}, {"-a": "1"}, {"a": ""}])
def test_names_and_versions_of_packages_are_nothing_else(
    project: Path, tmp_path: Path, packages: dict[str, str]
) -> None:
    with pytest.raises(InputError, match="is no package"):
        recorded(manifest(then(project), tmp_path, packages=packages))


def test_packages_and_their_files_are_known(project: Path, tmp_path: Path) -> None:
    debs = [{"package": "a", "sha256": "0" * 64, "version": "1"}, {"package": "b", "sha256": "1" * 64}]
    plan = then(project)
    found = recorded(manifest(plan, tmp_path, packages={"a": "1", "b": "2"}, debs=debs))
    assert found.packages == {"a": "1", "b": "2"}
    assert other_debs(found.debs, {"a": "0" * 64, "b": "2" * 64, "c": "3" * 64}) == ["b"]


def test_digest_of_a_deb_is_one(project: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not tell"):
        recorded(manifest(then(project), tmp_path, debs=[{"package": "a", "sha256": "x"}]))


@pytest.mark.parametrize("stages", [{}, {"base": {"key": "0" * 16}}])
def test_manifest_without_keys_is_refused(project: Path, tmp_path: Path, stages: Mapping[str, object]) -> None:
    with pytest.raises(InputError, match="keys of its stages"):
        recorded(manifest(then(project), tmp_path, stages=stages))


def test_each_file_is_told() -> None:
    lines = digest_lines({"qcow2": "aa", "ova": "bb", "vhdx": "cc"}, {"qcow2": "aa", "ova": "b0"})
    assert lines == [
        "qcow2: the same, aa",
        "ova: differs, bb",
        "     made again: b0",
        "vhdx: differs, cc",
        "      made again: not",
    ]
