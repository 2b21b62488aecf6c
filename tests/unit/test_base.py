from __future__ import annotations

from pathlib import Path

from tests.tools import context_in, plan_of
from vmimage import PROJECT
from vmimage.spec.load import load_spec
from vmimage.stages.base import base_stage, mmdebstrap_command


def test_what_is_kept_stands_behind_what_is_excluded(tmp_path: Path) -> None:
    plan = plan_of("toolbox")
    argv = mmdebstrap_command(base_stage(plan, context_in(tmp_path)), Path("/tree"))
    excluded = argv.index("--dpkgopt=path-exclude=/usr/share/doc/*")
    assert argv.index("--dpkgopt=path-include=/usr/share/doc/*/copyright") > excluded
    options = [one for one in argv if one.startswith("--dpkgopt=path-")]
    base = plan.base
    assert len(options) == len(base.exclude) + len(base.keep)


def test_the_initrd_is_asked_to_have_what_finds_the_root_and_a_seed() -> None:
    base = load_spec(PROJECT / "images.yaml").bases["trixie"]
    assert {"virtio_blk", "ahci", "sd_mod", "sr_mod", "ext4"} <= set(base.initrd)
