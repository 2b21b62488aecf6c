"""Pins that name the SHA-256 of the archive that upstream publishes, instead of that of the file in it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from tests.unit.test_spec import problems
from vmimage.cache.store import Store
from vmimage.commands.bundle import write_bundle
from vmimage.plan import PinnedFile, Plan, make_plan, pinned_file
from vmimage.spec.load import load_spec
from vmimage.stages.bake.payload import _add_pin
from vmimage.stages.fetch import fetch, file_of
from vmimage.util.console import Step
from vmimage.util.errors import FetchError

TOOL = b"#!/bin/sh\necho tool\n" * 100
FILE_DIGEST = hashlib.sha256(TOOL).hexdigest()
MEMBER = '        member: ["linux-{arch}/tool"]\n'
OLD = "    sha256:\n      amd64: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n"


def archive(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return data.getvalue()


ARCHIVE = archive({"linux-amd64/tool": TOOL})
DIGEST = hashlib.sha256(ARCHIVE).hexdigest()


def quiet() -> Step:
    return Step(lambda event, text: None, None, None)


def edited(project: Path, *edits: tuple[str, str]) -> None:
    path = project / "images.yaml"
    text = path.read_text()
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


def archive_only(project: Path, digest: str = DIGEST) -> None:
    """Let the pin name the SHA-256 of the archive, and no other."""
    edited(project, (OLD, ""), (MEMBER, f"{MEMBER}        sha256: {{amd64: {digest}}}\n"))


def planned(project: Path, mirror: Path) -> Plan:
    spec = load_spec(project / "images.yaml")
    return make_plan(spec, None, project=project, mirrors=[str(mirror)], tools={}, today=date(2026, 11, 27))


def only_mirrors(file: PinnedFile) -> PinnedFile:
    """Leave out what would reach another machine."""
    kept = tuple(source for source in file.sources if source.kind == "path")
    return PinnedFile(**{**vars(file), "sources": kept})


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "tool-amd64.tar.gz").write_bytes(ARCHIVE)
    return folder


def test_digest_of_the_archive_suffices(project: Path, mirror: Path, tmp_path: Path) -> None:
    archive_only(project)
    (pin,) = planned(project, mirror).files
    assert (pin.sha256, pin.members) == (DIGEST, ("linux-amd64/tool",))
    # The archive in another distribution has other bytes, and other members.
    assert [source.kind for source in pin.sources] == ["path", "path", "url"]
    assert not any(source.members for source in pin.sources)
    store = Store(tmp_path / "cache")
    path = fetch([only_mirrors(pin)], store, quiet())["tool"]
    assert path == store.file(DIGEST)
    assert path.read_bytes() == ARCHIVE, "what is kept is what its name says"
    (tmp_path / "unpacked").mkdir()
    assert file_of(pin, path, tmp_path / "unpacked").read_bytes() == TOOL
    assert [each.name for each in (tmp_path / "unpacked").iterdir()] == ["tool"]


def test_another_archive_is_refused_though_it_has_the_file(project: Path, mirror: Path, tmp_path: Path) -> None:
    archive_only(project)
    (mirror / "tool-amd64.tar.gz").write_bytes(archive({"linux-amd64/tool": TOOL, "more": b""}))
    (pin,) = planned(project, mirror).files
    with pytest.raises(FetchError, match="wrong content"):
        fetch([only_mirrors(pin)], Store(tmp_path / "cache"), quiet())


def test_archive_without_the_file_is_told_when_it_is_fetched(project: Path, mirror: Path, tmp_path: Path) -> None:
    other = archive({"linux-amd64/other": TOOL})
    (mirror / "tool-amd64.tar.gz").write_bytes(other)
    archive_only(project, hashlib.sha256(other).hexdigest())
    (pin,) = planned(project, mirror).files
    store = Store(tmp_path / "cache")
    with pytest.raises(FetchError, match="the archive has no linux-amd64/tool"):
        fetch([only_mirrors(pin)], store, quiet())
    assert not list((store.root / "files").iterdir())


def test_with_both_digests_both_are_compared(project: Path, mirror: Path, tmp_path: Path) -> None:
    edited(
        project,
        ("amd64: " + "a" * 64, f"amd64: {FILE_DIGEST}"),
        (MEMBER, f"{MEMBER}        sha256: {{amd64: {'b' * 64}}}\n"),
    )
    (pin,) = planned(project, mirror).files
    assert (pin.sha256, pin.members) == (FILE_DIGEST, ())
    with pytest.raises(FetchError, match="wrong archive"):
        fetch([only_mirrors(pin)], Store(tmp_path / "cache"), quiet())
    edited(project, ("b" * 64, DIGEST))
    (pin,) = planned(project, mirror).files
    assert fetch([only_mirrors(pin)], Store(tmp_path / "cache"), quiet())["tool"].read_bytes() == TOOL


def test_location_with_the_same_member_may_serve_the_archive_too(project: Path) -> None:
    archive_only(project)
    more = '      - path: archives/{version}.tar.gz\n        member: ["linux-{arch}/tool"]\n      - pypi:'
    edited(project, ("      - pypi:", more))
    spec = load_spec(project / "images.yaml")
    pin = pinned_file("tool", spec.pins["tool"], "amd64", (), project)
    assert [source.kind for source in pin.sources] == ["url", "path"]


def test_damaged_archive_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(archive({"linux-amd64/tool": TOOL, "more": b""}))
    pin = PinnedFile(name="tool", version="v1", arch="amd64", sha256=DIGEST, sources=(), members=("linux-amd64/tool",))
    (tmp_path / "to").mkdir()
    with pytest.raises(FetchError, match="damaged in the cache, and removed"):
        file_of(pin, tmp_path / "archive", tmp_path / "to")
    assert [each.name for each in tmp_path.iterdir()] == ["to"]
    assert not list((tmp_path / "to").iterdir())


def test_two_archives_in_each_other(tmp_path: Path) -> None:
    nested = archive({"a/inner.tgz": ARCHIVE})
    (tmp_path / "outer").write_bytes(nested)
    digest = hashlib.sha256(nested).hexdigest()
    members = ("a/inner.tgz", "linux-amd64/tool")
    pin = PinnedFile(name="tool", version="v1", arch="amd64", sha256=digest, sources=(), members=members)
    (tmp_path / "to").mkdir()
    assert file_of(pin, tmp_path / "outer", tmp_path / "to").read_bytes() == TOOL
    assert len(list((tmp_path / "to").iterdir())) == 1


def test_the_bake_is_given_the_file_out_of_the_archive(project: Path, mirror: Path, tmp_path: Path) -> None:
    archive_only(project)
    (pin,) = planned(project, mirror).files
    kept = tmp_path / DIGEST
    kept.write_bytes(ARCHIVE)
    (tmp_path / "to").mkdir()
    files: Callable[[str], Path] = lambda digest: tmp_path / digest  # noqa: E731
    _add_pin(files, pin.facts, tmp_path / "to" / "tool")
    assert [each.read_bytes() for each in (tmp_path / "to").iterdir()] == [TOOL]
    kept.write_bytes(ARCHIVE[:-1] + b"x")
    with pytest.raises(FetchError, match="damaged in the cache"):
        _add_pin(files, pin.facts, tmp_path / "to" / "tool")
    assert not kept.exists()


def test_keys_of_pins_without_archives_stay(project: Path, mirror: Path) -> None:
    (pin,) = planned(project, mirror).files
    assert pin.facts == {"version": "v1.2.3+x1", "sha256": "a" * 64}


def test_bundle_holds_the_file_and_its_own_digest(project: Path, mirror: Path, tmp_path: Path) -> None:
    edited(project, ("  tool:\n    version", "  kubectl:\n    version"), ("pins: [tool]", "pins: [kubectl]"))
    archive_only(project)
    made = planned(project, mirror)
    (tmp_path / "work").mkdir()
    write_bundle(made, {"kubectl": mirror / "tool-amd64.tar.gz"}, tmp_path / "update.tar", tmp_path / "work")
    with tarfile.open(tmp_path / "update.tar") as tar:
        read = {name: tar.extractfile(name) for name in tar.getnames()}
        index = read["update.json"].read().decode()  # type: ignore[union-attr]
        assert read["kubectl"].read() == TOOL  # type: ignore[union-attr]
    assert FILE_DIGEST in index
    assert DIGEST not in index
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mirror", "project", "update.tar", "work"]


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([(OLD, "")], "pins.tool: sha256 is missing: give that of the file, or at a location that of the archive"),
        ([(OLD, ""), (MEMBER, f"{MEMBER}        sha256: {{arm64: {DIGEST}}}\n")], "no digest for amd64, which images"),
        ([(MEMBER, f"        sha256: {{amd64: {DIGEST}}}\n")], "sha256 of a location is that of an archive, and needs"),
        ([(MEMBER, f"{MEMBER}        sha256: {{amd64: 0}}\n")], "pins.tool.locations[0].sha256.amd64: text is needed"),
        ([("        arch: amd64\n", f"        arch: amd64\n        sha256: {{arm64: {DIGEST}}}\n")], "of another arch"),
    ],
)
def test_what_is_wrong_is_told(project: Path, edits: list[tuple[str, str]], said: str) -> None:
    assert any(said in line for line in problems(project, *edits)), problems(project)
