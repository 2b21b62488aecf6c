"""Bases that are frozen: the packages as Debian had them at a moment."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from tests.tools import plan_of
from vmimage import PROJECT, pipeline
from vmimage.plan import period
from vmimage.spec.load import load_spec
from vmimage.spec.model import Base
from vmimage.spec.snapshot import ARCHIVE, snapshot_lines
from vmimage.stages.base import parse_debs, preferences, require_versions
from vmimage.util.errors import BuildError, InputError
from vmimage.util.settings import options

MOMENT = datetime(2026, 11, 25, 12, tzinfo=UTC)


def base(**values: object) -> Base:
    return Base.model_validate({"suite": "trixie", "packages": ["dbus"], **values})


def test_packages_of_a_moment_are_asked_for_by_its_time() -> None:
    assert snapshot_lines(MOMENT, "trixie") == [
        f"deb [check-valid-until=no] {ARCHIVE}/debian/20261125T120000Z/ trixie main",
        f"deb [check-valid-until=no] {ARCHIVE}/debian/20261125T120000Z/ trixie-updates main",
        f"deb [check-valid-until=no] {ARCHIVE}/debian-security/20261125T120000Z/ trixie-security main",
    ]
    assert len(snapshot_lines(MOMENT, "sid")) == 1


@pytest.mark.parametrize(
    ("archive", "start"),
    [
        ("http://mirror.example/snapshots/", "deb [check-valid-until=no] http://mirror.example/snapshots/debian/"),
        (
            "[signed-by=/k.asc] https://a.example/s",
            "deb [check-valid-until=no signed-by=/k.asc] https://a.example/s/debian/",
        ),
        ("file:///srv/snapshots", "deb [check-valid-until=no] copy:/srv/snapshots/debian/"),
    ],
)
def test_another_archive_can_be_asked(archive: str, start: str) -> None:
    chosen = options({"VMIMAGE_SNAPSHOT": archive})
    lines = pipeline.debian_sources(base(snapshot="2026-11-25T12:00:00Z"), chosen)
    assert all(line.startswith(start.removesuffix("/debian/")) for line in lines)
    assert lines[0] == f"{start}20261125T120000Z/ trixie main"


@pytest.mark.parametrize(
    "archive",
    ["mirror.example", "ftp://a/b", "https://", "https://a b", "[x] y", "file://server/x", "https://a\ndeb http://b"],
)
def test_archive_that_is_none_is_refused(archive: str) -> None:
    with pytest.raises(InputError, match="VMIMAGE_SNAPSHOT="):
        snapshot_lines(MOMENT, "trixie", archive)


@pytest.mark.parametrize(
    "archive", ["https://ci:t0psecret@a b", "ftp://ci:t0psecret@a/b", "https://ci:t0psecret@a/\x1b"]
)
def test_password_of_an_archive_is_not_shown(archive: str) -> None:
    with pytest.raises(InputError) as refused:
        snapshot_lines(MOMENT, "trixie", archive)
    assert "t0psecret" not in refused.value.message


def test_snapshot_is_part_of_the_key_and_stays() -> None:
    for day in (date(2026, 11, 28), date(2027, 11, 28)):
        assert period(base(snapshot="2026-11-25T00:00:00Z"), day) == "snapshot 20261125T000000Z"
    assert period(base(snapshot="2026-11-25T01:00:00+01:00"), day) == "snapshot 20261125T000000Z"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"snapshot": "2026-11-25"}, "snapshot"),
        ({"snapshot": "2026-11-25T00:00:00"}, "timezone"),
        ({"snapshot": "yesterday"}, "snapshot"),
        ({"snapshot": "2026-11-25T00:00:00Z", "refresh": "daily"}, "give `refresh` or `snapshot`"),
    ],
)
def test_snapshot_is_a_moment_and_is_not_refreshed(values: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        base(**values)


@pytest.mark.parametrize("moment", ["2004-01-01T00:00:00Z", "2026-12-24T00:00:00Z"])
def test_moment_without_a_snapshot_is_refused(moment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    spec = load_spec(PROJECT / "images.yaml")
    frozen = spec.bases["trixie"].model_copy(update={"refresh": None, "snapshot": datetime.fromisoformat(moment)})
    monkeypatch.setattr("tests.tools.load_spec", lambda _: spec.model_copy(update={"bases": {"trixie": frozen}}))
    with pytest.raises(InputError, match="is no moment of which there is a snapshot"):
        plan_of("toolbox")


LISTED = """\
Package: b
Version: 1:2-1+b1
Architecture: amd64
Filename: pool/main/b/b_2-1+b1_amd64.deb
Size: 20
SHA256: {0}

Package: a
Version: 1
Architecture: all
Depends: b,
 c
Filename: pool/main/a/a_1_all.deb
Size: 10
SHA256: {0}
"""


def test_debs_of_a_base_are_known_by_their_digests(tmp_path: Path) -> None:
    (tmp_path / "listed").write_text(LISTED.format("0" * 64))
    first, second = parse_debs(tmp_path / "listed")
    assert (first["package"], first["architecture"], first["bytes"]) == ("a", "all", 10)
    assert second == {
        "package": "b",
        "version": "1:2-1+b1",
        "architecture": "amd64",
        "file": "pool/main/b/b_2-1+b1_amd64.deb",
        "bytes": 20,
        "sha256": "0" * 64,
    }


@pytest.mark.parametrize("line", ["SHA256: {0}\n", "Size: 20\n", "Filename: pool/main/b/b_2-1+b1_amd64.deb\n"])
def test_deb_of_which_the_lists_tell_too_little_fails_the_base(tmp_path: Path, line: str) -> None:
    (tmp_path / "listed").write_text(LISTED.replace(line, "", 1))
    with pytest.raises(BuildError, match="the mirror's lists do not tell of b"):
        parse_debs(tmp_path / "listed")


def test_versions_that_are_wanted_are_told_to_apt() -> None:
    assert "".join(preferences({"a": "1:2-1+b1"})) == "Package: a\nPin: version 1:2-1+b1\nPin-Priority: 1001\n\n"


def test_other_versions_than_those_that_are_wanted_fail_the_base() -> None:
    require_versions({"a": "1"}, {})
    require_versions({"a": "1"}, {"a": "1"})
    with pytest.raises(BuildError) as refused:
        require_versions({"a": "2", "c": "1"}, {"a": "1", "b": "1"})
    assert refused.value.message.splitlines()[1:] == [
        "    a 2 instead of 1", "    b is not there instead of 1", "    c 1 instead of nothing",
    ]  # fmt: skip
