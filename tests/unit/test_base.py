from __future__ import annotations

from datetime import date
from pathlib import Path

from vmimage import PROJECT
from vmimage.plan import make_plan
from vmimage.spec import load_spec
from vmimage.stages.base import mmdebstrap_command

TOOLS = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "1.0")


def test_what_is_kept_stands_behind_what_is_excluded() -> None:
    spec = load_spec(PROJECT / "images.yaml")
    plan = make_plan(spec, "toolbox", project=PROJECT, tools=TOOLS, today=date(2026, 11, 23))
    argv = mmdebstrap_command(plan, Path("/tree"))
    excluded = argv.index("--dpkgopt=path-exclude=/usr/share/doc/*")
    assert argv.index("--dpkgopt=path-include=/usr/share/doc/*/copyright") > excluded
    options = [one for one in argv if one.startswith("--dpkgopt=path-")]
    base = spec.bases["trixie"]
    assert len(options) == len(base.exclude) + len(base.keep)


def test_the_initrd_is_asked_to_have_what_finds_the_root_and_a_seed() -> None:
    base = load_spec(PROJECT / "images.yaml").bases["trixie"]
    assert {"virtio_blk", "ahci", "sd_mod", "sr_mod", "ext4"} <= set(base.initrd)
