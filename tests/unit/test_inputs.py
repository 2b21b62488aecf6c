"""Bundles of inputs: what is read of them, and what is believed (nothing)."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import pytest

from tests import inputs as made
from tests.inputs import DEB, DEB_PATH, LINE, LIST, LIST_PATH, PIN, SIGNED, SIGNED_PATH, URI, changed, digest
from tests.tools import context_in
from vmimage.inputs.bundle import Index, PythonFiles, opened_bundle, read_index, write_bundle
from vmimage.inputs.kept import keep_debs, keep_lists, kept_digests, kept_packages
from vmimage.inputs.mirror import MirrorPart, kept_lists, options_of, read_part
from vmimage.util.errors import BuildError, InputError

OTHER = "0" * 64


def opened(path: Path) -> Index:
    with opened_bundle(path) as bundle:
        return bundle.index


# --- The file --------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    index = read_index(json.dumps(made.index()).encode())
    files = {}
    for name, data in made.members().items():
        files[name] = tmp_path / name
        files[name].write_bytes(data)
    first, second = write_bundle(tmp_path / "a.tar", index, files), write_bundle(tmp_path / "b.tar", index, files)
    assert first == second == digest((tmp_path / "a.tar").read_bytes())
    with opened_bundle(tmp_path / "a.tar") as bundle:
        assert bundle.index == index
        assert list(bundle.archive.members) == ["index.json", *sorted(files)]
        for data in (LIST, SIGNED, DEB):
            bundle.extract(digest(data), tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == data


def test_file_that_was_damaged_in_the_cache_is_not_bundled(tmp_path: Path) -> None:
    index = Index(pins={"tool": digest(PIN)}, bases=(), python=PythonFiles(version="3", platform="x", files={}))
    (tmp_path / "tool").write_bytes(b"another")
    with pytest.raises(InputError, match="damaged in the cache"):
        write_bundle(tmp_path / "a.tar", index, {digest(PIN): tmp_path / "tool"})
    assert [path.name for path in tmp_path.iterdir()] == ["tool"]


@pytest.mark.parametrize("data", [DEB, LIST])
def test_tampered_file_is_refused(tmp_path: Path, data: bytes) -> None:
    members = made.members()
    name = digest(lzma.compress(LIST) if data == LIST else data)
    members[name] = lzma.compress(b"x" + LIST[1:]) if data == LIST else b"x" + data[1:]
    path = made.bundle(tmp_path / "a.tar", files=members)
    with opened_bundle(path) as bundle, pytest.raises(InputError, match="is damaged"):
        bundle.extract(digest(data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_that_is_missing_is_named(tmp_path: Path) -> None:
    files = made.members()
    del files[digest(DEB)]
    with pytest.raises(InputError, match=f"it has not all files that it names, such as {digest(DEB)}"):
        opened(made.bundle(tmp_path / "a.tar", files=files))


def test_list_that_becomes_endless_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmimage.inputs.bundle.MOST_LIST_BYTES", len(LIST) - 1)
    with opened_bundle(made.bundle(tmp_path / "a.tar")) as bundle, pytest.raises(InputError, match="is unpacked"):
        bundle.extract(digest(LIST), tmp_path / "out")


def test_update_for_machines_is_no_bundle_of_inputs(tmp_path: Path) -> None:
    path = tmp_path / "update.tar"
    path.write_bytes(made.archived({"update.json": b"{}"}))
    with pytest.raises(InputError, match="it is an update for machines, which `invoke bundle` writes"):
        opened(path)


@pytest.mark.parametrize(
    ("where", "value", "why"),
    [
        ("format", 2, "its format is 2"),
        ("bases/0/suite", "trixie main\ndeb http://x", "cannot stand there"),
        ("bases/0/period", "\x1b[2J", "cannot stand there"),
        ("bases/0/mirrors", ["deb http://a\ndeb http://b"], "cannot stand there"),
        ("bases/0/packages", ["--exec"], "cannot stand there"),
        ("bases/0/part/repositories", [], "repositories: none"),
        ("bases/0/part/repositories/0/suite", "a b", "cannot stand there"),
        ("bases/0/part/repositories/0/component", "main [trusted=yes]", "cannot stand there"),
        ("bases/0/part/repositories/0/uri", 5, "cannot stand there"),
        ("bases/0/part/debs", {"../../etc/cron.d/x": OTHER}, "is no path below a mirror"),
        ("bases/0/part/debs", {"/etc/passwd": OTHER}, "is no path below a mirror"),
        ("bases/0/part/debs", {"a//b": OTHER}, "is no path below a mirror"),
        ("bases/0/part/debs", {"a/./b": OTHER}, "is no path below a mirror"),
        ("bases/0/part/debs", {"a/\0": OTHER}, "is no path below a mirror"),
        ("bases/0/part/debs", {"a": OTHER, "a/b": OTHER}, "is a file and a folder"),
        ("bases/0/part/debs", {"a": "../../etc/passwd"}, "cannot stand there"),
        ("python/files", {"../a.whl": OTHER}, "cannot stand there"),
        ("python/files", {"--target=x.whl": OTHER}, "cannot stand there"),
        ("pins", {"tool": ["x"]}, "cannot stand there"),
        ("compressed", {"x": OTHER}, "cannot stand there"),
    ],
)
def test_index_says_nothing_else(tmp_path: Path, where: str, value: object, why: str) -> None:
    with pytest.raises(InputError, match=why) as refused:
        opened(made.bundle(tmp_path / "a.tar", changed(where, value)))
    assert "no bundle of inputs" in refused.value.message


# --- Parts of mirrors --------------------------------------------------------------------------------------------

TARGETS = """\
Packages|main/binary-amd64/Packages|{uri}/|{uri}/dists/trixie/main/binary-amd64/Packages|trixie|main|/x/{name}
Translations|main/i18n/Translation-en|{uri}/|{uri}/dists/trixie/main/i18n/Translation-en|trixie|main|/x/{name}
Packages|contrib/binary-amd64/Packages|{uri}/|{uri}/dists/trixie/contrib/binary-amd64/Packages|trixie|contrib|/x/none
Packages|Packages|http://flat.example/|http://flat.example/./Packages|./||/x/flat.example_._Packages
"""


def test_lists_of_apt_and_what_signs_them_are_found(tmp_path: Path) -> None:
    start = "deb.example_debian_dists_trixie_"
    name = f"{start}main_binary-amd64_Packages"
    for each in (name, f"{start}InRelease", "flat.example_._Packages", "flat.example_._Release"):
        (tmp_path / each).touch()
    targets = TARGETS.format(uri="http://ci:t0psecret@deb.example/debian", name=name)
    found = {
        uri: {path: file.name for path, file in files.items()} for uri, _, _, files in kept_lists(targets, tmp_path)
    }
    assert found == {
        "http://***@deb.example/debian/": {LIST_PATH: name, SIGNED_PATH: f"{start}InRelease"},
        "http://flat.example/": {"Packages": "flat.example_._Packages", "Release": "flat.example_._Release"},
    }


def test_part_is_laid_out_as_mirrors(tmp_path: Path) -> None:
    told = made.part()
    told["repositories"] += [
        {**told["repositories"][0], "suite": "trixie-updates"},
        {**told["repositories"][0], "uri": "http://other.example/", "suite": "./", "component": ""},
    ]

    def put(sha256: str, to: Path) -> None:
        to.write_text(sha256)

    lines = read_part(told).lay(tmp_path / "a b", put)
    own = "[check-valid-until=no by-hash=no target=Packages]"
    assert lines == [
        f"deb {own} copy:{tmp_path}/a%20b/0 trixie main",
        f"deb {own} copy:{tmp_path}/a%20b/0 trixie-updates main",
        f"deb {own} copy:{tmp_path}/a%20b/1 ./",
    ]
    for root in ("0", "1"):
        for path, data in ((LIST_PATH, LIST), (SIGNED_PATH, SIGNED), (DEB_PATH, DEB)):
            assert (tmp_path / "a b" / root / path).read_text() == digest(data)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f"deb [trusted=yes] {URI} trixie main", "trusted=yes"),
        (f"deb [signed-by=/k trusted=no] {URI}/ trixie contrib main", "signed-by=/k trusted=no"),
        ("deb [trusted=yes] http://ci:pw@deb.example/debian trixie main", ""),
        (f"deb [trusted=yes] {URI} sid main", ""),
        (f"deb [trusted=yes] {URI} trixie contrib", ""),
        ("nothing [trusted=yes]", ""),
    ],
)
def test_options_are_those_of_the_users_own_line(line: str, found: str) -> None:
    part = read_part(made.part())
    assert options_of(part.repositories[0], [line]) == found


# --- What the cache keeps ------------------------------------------------------------------------------------------


def kept_base(folder: Path) -> tuple[MirrorPart, Path]:
    """Put a base into a cache, as the stage does; returns its part of a mirror, and its folder."""
    store = context_in(folder).store
    kept, result = folder / "kept", folder / "result"
    for each in (kept / "lists", kept / "debs", result):
        each.mkdir(parents=True)
    (kept / "lists/deb.example_debian_dists_trixie_main_binary-amd64_Packages").write_bytes(LIST)
    (kept / "lists/deb.example_debian_dists_trixie_InRelease").write_bytes(SIGNED)
    name = "deb.example_debian_dists_trixie_main_binary-amd64_Packages"
    (kept / "targets.txt").write_text(TARGETS.format(uri=URI, name=name))
    (kept / "debs/a_1+1_amd64.deb").write_bytes(DEB)
    (kept / "debs/b_1_amd64.deb").write_bytes(b"of nobody")
    os.utime(kept / "debs/a_1+1_amd64.deb", (0, 0))
    debs = [{"file": DEB_PATH, "sha256": digest(DEB)}]
    part = keep_lists(kept, debs, result)
    keep_debs(kept / "debs", {digest(DEB)}, store)
    return part, store.add("base", {"edition": 1}, result, {}).path


def test_packages_and_lists_of_a_base_are_kept_by_their_digests(tmp_path: Path) -> None:
    part, base = kept_base(tmp_path)
    assert part == read_part(made.part())
    store = context_in(tmp_path).store
    assert [path.name for path in (store.root / "files").iterdir()] == [digest(DEB)]
    assert store.file(digest(DEB)).stat().st_mtime > 0, "it counts as used now, not when it was packed"
    assert kept_digests(base) == {digest(DEB), digest(LIST), digest(SIGNED)}
    found = kept_packages(store, base.name, [LINE])
    assert found
    found.lay(tmp_path / "mirror")
    assert (tmp_path / "mirror/0" / DEB_PATH).read_bytes() == DEB
    assert (tmp_path / "mirror/0" / LIST_PATH).read_bytes() == LIST


def test_base_from_a_bundle_keeps_the_mirrors_of_then(tmp_path: Path) -> None:
    part, _ = kept_base(tmp_path)
    here = tmp_path / "here"
    (here / "lists").mkdir(parents=True)
    (here / "targets.txt").write_text(TARGETS.format(uri="copy:/mirror/0", name="none"))
    (tmp_path / "made").mkdir()
    assert keep_lists(here, [{"file": DEB_PATH, "sha256": digest(DEB)}], tmp_path / "made", part) == part


def test_base_without_one_of_its_packages_is_no_source(tmp_path: Path) -> None:
    _, base = kept_base(tmp_path)
    store = context_in(tmp_path).store
    assert kept_packages(store, "0" * 16, []) is None
    store.file(digest(DEB)).write_bytes(b"damaged")
    found = kept_packages(store, base.name, [])
    assert found
    with pytest.raises(BuildError, match="was damaged in the cache"):
        found.lay(tmp_path / "mirror")
    store.file(digest(DEB)).unlink()
    assert kept_packages(store, base.name, []) is None


def test_base_that_nobody_kept_anything_of_has_no_packages(tmp_path: Path) -> None:
    assert kept_digests(tmp_path) == set()
    (tmp_path / "mirror.json").write_text("[]")
    assert kept_digests(tmp_path) == set()
