from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from tests.tools import step_into
from vmimage import PROJECT
from vmimage.errors import InputError
from vmimage.pipeline import Start, find_start, planned
from vmimage.plan import Plan, make_plan
from vmimage.settings import options
from vmimage.spec import load_spec
from vmimage.store import Result, Store

TOOLS = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "1.0")


def plan_of(project: Path = PROJECT, image: str | None = "toolbox") -> Plan:
    return make_plan(load_spec(project / "images.yaml"), image, project=project, tools=TOOLS, today=date(2026, 11, 23))


@pytest.mark.parametrize(
    ("text", "again", "step"),
    [
        ("", [], None),
        ("base", ["base", "bake", "export", "verify", "release"], None),
        ("bake", ["bake", "export", "verify", "release"], 0),
        ("30-helm", ["bake", "export", "verify", "release"], 2),
        ("30-helm.sh", ["bake", "export", "verify", "release"], 2),
        ("verify", ["verify", "release"], None),
    ],
)
def test_from_where_on_all_is_done_again(text: str, again: list[str], step: int | None) -> None:
    start = find_start(plan_of(), text)
    assert [stage for stage in ("fetch", "base", "bake", "export", "verify", "release") if start.at(stage)] == again
    assert start.step == step
    assert not Start().at("release")


def test_start_that_there_is_not() -> None:
    with pytest.raises(InputError, match="--from 50-k3s: no stage or step of toolbox") as refused:
        find_start(plan_of(), "50-k3s")
    assert "40-sshfs" in refused.value.hint


def test_plan_says_what_changed(project: Path, tmp_path: Path) -> None:
    store, chosen = Store(tmp_path / "cache"), options({"VMIMAGE_DIST": str(tmp_path / "dist")})
    before = plan_of(project, None)
    base = store.get_or_make("base", before.base_stage.inputs, lambda work: {}, step_into([]))
    for stage in (before.steps[0].layer, before.bake_stage):
        store.get_or_make(stage.stage, stage.inputs, lambda work: {}, step_into([]), below=base)
    rows = {stage: (state, why) for stage, state, why in planned(before, chosen, store)}
    assert {stage: rows[stage][0] for stage in ("base", "layer", "bake", "export", "verify", "release")} == {
        "base": "cached", "layer": "cached", "bake": "cached", "export": "make", "verify": "make", "release": "make",
    }  # fmt: skip
    (project / "provision/20-tool.sh").write_text("# changed\n")
    rows = {stage: (state, why) for stage, state, why in planned(plan_of(project, None), chosen, store)}
    assert rows["base"][0] == "cached"
    assert rows["layer"] == ("make", rows["layer"][1])
    assert rows["layer"][1].endswith(": provision/20-tool.sh changed")
    assert rows["bake"][1].endswith(": what it builds on changed")


def test_plan_says_that_what_was_made_from_a_removed_base_is_made_again(project: Path, tmp_path: Path) -> None:
    store, chosen = Store(tmp_path / "cache"), options({"VMIMAGE_DIST": str(tmp_path / "dist")})
    plan = plan_of(project, None)

    def make_base() -> Result:
        return store.get_or_make("base", plan.base_stage.inputs, lambda work: {}, step_into([]), fresh=True)

    store.get_or_make("bake", plan.bake_stage.inputs, lambda work: {}, step_into([]), below=make_base())
    make_base()
    rows = {stage: (state, why) for stage, state, why in planned(plan, chosen, store)}
    assert rows["base"][0] == "cached"
    assert rows["bake"][0] == "make"
    assert rows["bake"][1].endswith(": what it builds on changed")
