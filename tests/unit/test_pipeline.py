from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import context_in, plan_of, step_into
from vmimage.cache.result import Result
from vmimage.pipeline import find_start, stages_of, the_stage
from vmimage.stages.bake.stage import BakeStage
from vmimage.stages.base import BaseStage
from vmimage.stages.stage import BuildContext, Stage
from vmimage.util.errors import InputError

NAMES = ("fetch", "base", "bake", "export", "verify", "release")


def test_stages_stand_in_their_order_and_each_on_the_one_before(tmp_path: Path) -> None:
    stages = stages_of(plan_of("toolbox"), context_in(tmp_path))
    assert tuple(stage.name for stage in stages) == NAMES
    _, base, bake, export, verify, release = stages
    assert isinstance(bake, BakeStage)
    assert (bake.made_from, export.after, verify.after, release.after) == (base, bake, export, verify)
    assert not [stage.name for stage in stages if stage.is_there() and stage.name != "fetch"]


def test_all_fields_of_a_stage_are_its_inputs(tmp_path: Path) -> None:
    base = the_stage(stages_of(plan_of("toolbox"), context_in(tmp_path)), BaseStage)
    assert set(base.inputs) == {"edition", "suite", "arch", "packages", "exclude", "keep", "initrd", "period",
                                "mirrors", "files", "tools", "versions"}  # fmt: skip


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
    start = find_start(plan_of("toolbox"), NAMES, text)
    assert list(NAMES[start.stage :]) == again
    assert start.step == step


def test_start_that_there_is_not() -> None:
    with pytest.raises(InputError, match="--from 50-k3s: no stage or step of toolbox") as refused:
        find_start(plan_of("toolbox"), NAMES, "50-k3s")
    assert "40-sshfs" in refused.value.hint


def rows_of(project: Path, context: BuildContext) -> dict[str, tuple[str, str]]:
    """Return stage -> state and why, as `invoke plan` shows it."""
    rows = [row for stage in stages_of(plan_of(None, project), context) for row in stage.planned()]
    return {stage: (state, why) for stage, state, why in rows}


def test_plan_says_what_changed(project: Path, tmp_path: Path) -> None:
    context = context_in(tmp_path)
    store = context.store
    base, bake = base_and_bake(project, context)
    made = store.get_or_make("base", base.inputs, lambda work: {}, step_into([]))
    for keyed in (bake.layers[0], bake):
        store.get_or_make(keyed.name, keyed.inputs, lambda work: {}, step_into([]), below=made)
    rows = rows_of(project, context)
    assert {stage: rows[stage][0] for stage in ("base", "layer", "bake", "export", "verify", "release")} == {
        "base": "cached", "layer": "cached", "bake": "cached", "export": "make", "verify": "make", "release": "make",
    }  # fmt: skip
    (project / "provision/20-tool.sh").write_text("# changed\n")
    rows = rows_of(project, context)
    assert rows["base"][0] == "cached"
    assert rows["layer"] == ("make", rows["layer"][1])
    assert rows["layer"][1].endswith(": provision/20-tool.sh changed")
    assert rows["bake"][1].endswith(": what it builds on changed")


def base_and_bake(project: Path, context: BuildContext) -> tuple[BaseStage, BakeStage]:
    stages: tuple[Stage, ...] = stages_of(plan_of(None, project), context)
    return the_stage(stages, BaseStage), the_stage(stages, BakeStage)


def test_plan_says_that_what_was_made_from_a_removed_base_is_made_again(project: Path, tmp_path: Path) -> None:
    context = context_in(tmp_path)
    base, bake = base_and_bake(project, context)

    def make_base() -> Result:
        return context.store.get_or_make("base", base.inputs, lambda work: {}, step_into([]), fresh=True)

    context.store.get_or_make("bake", bake.inputs, lambda work: {}, step_into([]), below=make_base())
    make_base()
    rows = rows_of(project, context)
    assert rows["base"][0] == "cached"
    assert rows["bake"][0] == "make"
    assert rows["bake"][1].endswith(": what it builds on changed")
