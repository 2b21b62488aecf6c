"""What `invoke verify FILE` believes of what lies beside the file, and of what the image says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import released
from vmimage.commands.verify_file import manifest_of_file, require_all_claimed
from vmimage.stages.release.manifest import read_manifest
from vmimage.util.console import Console
from vmimage.util.errors import VerifyError

VERSION = "20261127-01234567"
NAME = f"toolbox-{VERSION}-amd64.qcow2"


def test_manifest_that_names_the_file_counts(tmp_path: Path) -> None:
    folder = released(tmp_path, "toolbox", VERSION)
    known = manifest_of_file(folder / NAME, Console())
    assert known
    assert known.version == VERSION


def test_renamed_file_is_found_by_its_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = released(tmp_path, "toolbox", VERSION)
    (folder / NAME).rename(folder / "my copy.qcow2")
    known = manifest_of_file(folder / "my copy.qcow2", Console())
    assert known
    assert capsys.readouterr().out == f"my copy.qcow2 is {NAME} of toolbox {VERSION}, renamed\n"


def test_file_with_other_bytes_and_another_name_is_told_not_to_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = released(tmp_path, "toolbox", VERSION)
    (folder / "x.qcow2").write_bytes(b"other")
    assert manifest_of_file(folder / "x.qcow2", Console()) is None
    assert "does not name x.qcow2, and no file of it has its bytes: it is not compared with it" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize("text", ['[{"Config": "c.json"}]', '{"name": "a", "files": ["a.js"]}', "x", "", "[" * 90_000])
def test_manifest_of_something_else_is_told_and_not_gone_by(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "x.qcow2").write_bytes(b"x")
    assert manifest_of_file(tmp_path / "x.qcow2", Console()) is None
    assert "is that of no release, so x.qcow2 is not compared with it" in " ".join(capsys.readouterr().err.split())


def test_nothing_beside_the_file_is_nothing_to_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert manifest_of_file(tmp_path / "x.qcow2", Console()) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("components", [[], ["other"]])
def test_image_that_claims_less_than_its_name_says(components: list[str], project: Path) -> None:
    facts = {"image": "small", "components": components, "versions": {}}
    with pytest.raises(VerifyError, match=r"is small and does not claim tool, which images\.yaml gives it"):
        require_all_claimed(facts, project / "images.yaml", None, Console())


def test_image_that_claims_less_than_its_manifest(project: Path, tmp_path: Path) -> None:
    folder = released(tmp_path, "toolbox", VERSION, components=["tool", "k3s"])
    facts = {"image": "toolbox", "components": ["tool"], "versions": {}}
    with pytest.raises(VerifyError, match=r"does not claim k3s, which manifest\.json gives it"):
        require_all_claimed(facts, project / "images.yaml", read_manifest(folder / "manifest.json"), Console())


def test_image_that_claims_all(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"image": "small", "components": ["tool", "more"], "versions": {}}
    require_all_claimed(facts, project / "images.yaml", None, Console())
    assert capsys.readouterr().err == ""
    require_all_claimed(facts | {"image": "another"}, project / "images.yaml", None, Console())
    assert "images.yaml has no image 'another': only what" in " ".join(capsys.readouterr().err.split())
