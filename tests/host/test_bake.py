from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import context_in, plan_of
from vmimage.stages.bake.payload import environment
from vmimage.stages.bake.stage import BakeStage, bake_stage
from vmimage.stages.base import base_stage
from vmimage.util.run import run


@pytest.fixture
def bake(tmp_path: Path) -> BakeStage:
    """The bake of dev-env."""
    plan = plan_of("dev-env")
    return bake_stage(plan, base_stage(plan, context_in(tmp_path / "context")))


def test_environment_of_the_steps_is_shell(bake: BakeStage) -> None:
    layer = next(layer for layer in bake.layers if layer.step_name == "50-k3s")
    script = environment(layer.script, layer.pins) + 'echo "$PINS $K3S_AIRGAP_IMAGES_VERSION ${KUBECTL_VERSION-none}"'
    shown = run(["sh", "-euc", script]).output
    assert shown == f"/run/vmimage/pins/50-k3s {layer.pins['k3s']['version']} none", "a step sees its own pins only"
