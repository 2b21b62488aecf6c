"""Every format, from one small disk: what is written is what a reader finds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tools import context_in, plan_of, step_into
from vmimage.formats.all import BY_NAME, kind_of, open_disk
from vmimage.pipeline import stages_of, the_stage
from vmimage.spec.model import AllFormats
from vmimage.stages.export import ExportStage, make_export
from vmimage.util.errors import BuildError
from vmimage.util.run import run

KINDS = tuple(BY_NAME)


@pytest.fixture
def stage(tmp_path: Path) -> ExportStage:
    """The export of toolbox with all formats."""
    stages = stages_of(plan_of("toolbox"), context_in(tmp_path / "context"))
    return replace(the_stage(stages, ExportStage), formats=AllFormats.model_validate({kind: {} for kind in KINDS}))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(os.urandom(300_000) + b"text " * 100_000)
        file.seek(33 << 20)
        file.write(b"data" * 50_000)
        file.truncate(64 << 20)
    return path


def export(stage: ExportStage, disk: Path, work: Path) -> dict[str, Path]:
    work.mkdir()
    meta = make_export(stage, disk, work, step_into([]))
    files = meta["files"]
    assert isinstance(files, dict)
    return {kind: work / facts["name"] for kind, facts in files.items()}


def test_every_format_holds_the_disk(stage: ExportStage, disk: Path, tmp_path: Path) -> None:
    files = export(stage, disk, tmp_path / "work")
    assert set(files) == set(KINDS)
    assert set((tmp_path / "work").iterdir()) == set(files.values()), "and nothing else is left"
    for kind, path in files.items():
        assert kind_of(path) == kind
        folder = tmp_path / f"open-{kind}"
        folder.mkdir()
        opened = open_disk(kind, path, folder)
        run(["qemu-img", "compare", "-f", "raw", "-F", opened.format, disk, opened.path])


def test_same_disk_gives_the_same_bytes(stage: ExportStage, disk: Path, tmp_path: Path) -> None:
    first, second = export(stage, disk, tmp_path / "a"), export(stage, disk, tmp_path / "b")
    same = {kind for kind in KINDS if first[kind].read_bytes() == second[kind].read_bytes()}
    # qemu-img puts random identifiers into a vhdx.
    assert same == set(KINDS) - {"vhdx"}


def test_vhdx_has_no_holes(stage: ExportStage, disk: Path, tmp_path: Path) -> None:
    facts = export(stage, disk, tmp_path / "work")["vhdx"].stat()
    assert facts.st_blocks * 512 >= facts.st_size


@pytest.mark.parametrize("kind", KINDS)
def test_full_disk_is_an_error_that_names_the_file(stage: ExportStage, disk: Path, tmp_path: Path, kind: str) -> None:
    one = replace(stage, formats=AllFormats.model_validate({kind: {}}))
    work = tmp_path / "work"
    work.mkdir()
    (work / f"toolbox-amd64.{kind}").symlink_to("/dev/full")
    (work / "toolbox-amd64.holey").symlink_to("/dev/full")
    with pytest.raises(BuildError):
        make_export(one, disk, work, step_into([]))
