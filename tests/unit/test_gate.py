"""The gate before a release: what is known of its packages, and what images.yaml lets pass."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from vmimage.spec.vulnerabilities import Allowed, Vulnerabilities
from vmimage.stages.release.gate.gate import Gate
from vmimage.stages.release.gate.policy import judge
from vmimage.stages.release.gate.tracker import (
    LEAST_PACKAGES,
    Finding,
    find_vulnerabilities,
    read_tracker,
    source_packages,
)
from vmimage.util.console import Step
from vmimage.util.errors import InputError, VerifyError
from vmimage.util.settings import Bounds

TODAY = date(2026, 11, 28)
PURLS = (
    "pkg:deb/debian/curl@8.14.1-2?arch=source",
    "pkg:deb/debian/curl@8.14.1-2%2Bb1?arch=amd64",
    "pkg:deb/debian/e2fsprogs@1%3A1.47.2-3?arch=source",
    "pkg:golang/helm.sh/helm/v4@v4.3.1",
)
BOM = json.dumps({"components": [{"purl": purl} for purl in PURLS]})
FILLING: dict[str, Any] = {f"package{number}": {} for number in range(LEAST_PACKAGES)}


def in_trixie(status: str, **facts: object) -> dict[str, Any]:
    suite = {"status": status, "repositories": {"trixie": "8.14.1-2"}, "urgency": "not yet assigned", **facts}
    return {"description": "d", "scope": "local", "releases": {"trixie": suite, "sid": suite | {"status": "open"}}}


def known(**packages: dict[str, Any]) -> dict[str, Any]:
    return {**FILLING, **packages}


CURL = {
    "CVE-2026-0001": in_trixie("resolved", fixed_version="8.14.1-2+deb13u1"),
    "CVE-2026-0002": in_trixie("resolved", fixed_version="8.14.1-2"),
    "CVE-2026-0003": in_trixie("resolved", fixed_version="0"),
    "CVE-2026-0004": in_trixie("open", urgency="high"),
    "CVE-2026-0005": in_trixie("open", nodsa="Minor issue"),
    "CVE-2026-0006": in_trixie("open", urgency="unimportant"),
    "CVE-2026-0007": {"releases": {"bookworm": in_trixie("open")["releases"]["trixie"]}},
}


def found(**packages: dict[str, Any]) -> dict[str, Finding]:
    return {each.id: each for each in find_vulnerabilities(BOM, known(**packages), "trixie")}


def rules(block: str = "fixed", *allow: dict[str, str]) -> Vulnerabilities:
    return Vulnerabilities.model_validate({"block": block, "allow": list(allow)})


def allow(id_: str, until: str = "2026-11-28", **more: str) -> dict[str, str]:
    return {"id": id_, "reason": "not reachable", "until": until, **more}


def gate(tmp_path: Path, data: object, *, rules_: Vulnerabilities | None = None, told: list[str] | None = None) -> Gate:
    file = tmp_path / "tracker.json"
    file.write_text(json.dumps(data))
    warn = (told if told is not None else []).append
    return Gate(
        rules=rules_ or rules(), suite="trixie", today=TODAY, bounds=Bounds(seconds=5), warn=warn, data=str(file)
    )


@pytest.fixture
def step() -> Step:
    return Step(lambda *_: None, None, None)


def test_source_packages_of_debian_are_looked_up() -> None:
    assert list(source_packages(BOM)) == [("curl", "8.14.1-2"), ("e2fsprogs", "1:1.47.2-3")]


def test_vulnerabilities_of_this_version_in_this_suite_are_found() -> None:
    findings = found(curl=CURL)
    assert set(findings) == {f"CVE-2026-000{number}" for number in (1, 4, 5, 6)}
    assert findings["CVE-2026-0001"].fixed == "8.14.1-2+deb13u1"
    assert findings["CVE-2026-0004"] == Finding(
        id="CVE-2026-0004", package="curl", version="8.14.1-2", fixed="", urgency="high", minor=False
    )
    assert findings["CVE-2026-0005"].minor
    assert findings["CVE-2026-0006"].minor


def test_epochs_count() -> None:
    entries = {"CVE-2026-0001": in_trixie("resolved", fixed_version="1.48.0-1")}
    assert found(e2fsprogs=entries) == {}


@pytest.mark.parametrize(("block", "wanted"), [("fixed", ["0001"]), ("open", ["0001", "0004"])])
def test_rules_say_what_blocks(block: str, wanted: list[str]) -> None:
    judged = judge(list(found(curl=CURL).values()), rules(block), TODAY)
    assert [finding.id for finding, _ in judged.blocking] == [f"CVE-2026-{number}" for number in wanted]
    assert judged.passed == 4 - len(wanted)


def test_what_is_allowed_passes_until_its_last_day() -> None:
    findings = list(found(curl=CURL).values())
    good = rules("fixed", allow("CVE-2026-0001"), allow("CVE-2026-0005"), allow("CVE-2020-1234"))
    judged = judge(findings, good, TODAY)
    assert judged.blocking == []
    assert [(finding.id, entry.reason) for finding, entry in judged.allowed] == [("CVE-2026-0001", "not reachable")]
    assert [entry.id for entry in judged.unused] == ["CVE-2020-1234"]
    ((finding, over),) = judge(findings, good, date(2026, 11, 29)).blocking
    assert finding.id == "CVE-2026-0001"
    assert over
    assert str(over.until) == "2026-11-28"


def test_what_is_allowed_in_one_package_is_not_in_another() -> None:
    judged = judge(list(found(curl=CURL).values()), rules("fixed", allow("CVE-2026-0001", package="wget")), TODAY)
    assert [finding.package for finding, _ in judged.blocking] == ["curl"]


def test_gate_stops_a_release_and_says_what_to_update(tmp_path: Path, step: Step) -> None:
    with pytest.raises(VerifyError) as refused:
        gate(tmp_path, known(curl=CURL)).check(BOM, tmp_path, step)
    assert "CVE-2026-0001: curl 8.14.1-2, mended in 8.14.1-2+deb13u1" in refused.value.message
    assert "--from base" in refused.value.hint


def test_gate_says_when_an_allowance_is_over(tmp_path: Path, step: Step) -> None:
    late = rules("fixed", allow("CVE-2026-0001", "2026-11-27"))
    with pytest.raises(VerifyError, match="it was allowed until 2026-11-27"):
        gate(tmp_path, known(curl=CURL), rules_=late).check(BOM, tmp_path, step)


def test_gate_that_lets_pass_says_what_it_saw(tmp_path: Path, step: Step) -> None:
    told: list[str] = []
    good = rules("fixed", allow("CVE-2026-0001"), allow("CVE-2020-1234"))
    facts = gate(tmp_path, known(curl=CURL), rules_=good, told=told).check(BOM, tmp_path, step)
    assert facts["ran"] is True
    assert facts["passed"] == 3
    assert facts["allowed"] == [
        {"id": "CVE-2026-0001", "package": "curl", "reason": "not reachable", "until": "2026-11-28"}
    ]
    assert told == ["images.yaml: vulnerabilities: CVE-2020-1234 is allowed, and not in this image"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/data", "http://tracker.example/data"])
def test_gate_without_data_says_that_it_did_not_run(tmp_path: Path, step: Step, url: str) -> None:
    told: list[str] = []
    closed = Gate(rules=rules(), suite="trixie", today=TODAY, bounds=Bounds(seconds=0.2), warn=told.append, data=url)
    facts = closed.check(BOM, tmp_path, step)
    assert facts["ran"] is False
    assert str(facts["why"]).startswith(url)
    assert told[0].startswith(f"the gate did not run: {url}")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"curl": 1}', "nonsense", "[" * 100_000, json.dumps(FILLING)[:-1], "\xff"),
        # Of two, the last one would count.
        json.dumps(FILLING)[:-1] + ', "curl": {}, "curl": {}}',
        json.dumps(FILLING)[:-1] + ', "curl": {"CVE-2026-0001": {}, "CVE-2026-0001": {}}}',
        json.dumps(FILLING)[:-1] + ', "curl": NaN}',
    ],
)
def test_data_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="no data of Debian's security tracker"):
        read_tracker(tmp_path / "data")


def test_data_that_would_fill_the_memory_are_refused_before_they_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmimage.stages.release.gate.tracker.MOST_VALUES", LEAST_PACKAGES + 2)
    (tmp_path / "data").write_text(json.dumps(FILLING))
    assert read_tracker(tmp_path / "data") == FILLING
    (tmp_path / "data").write_text(json.dumps({**FILLING, "a": [[], []]}))
    with pytest.raises(InputError, match="more than 1002 objects and lists"):
        read_tracker(tmp_path / "data")


def test_data_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data of Debian's security tracker: .*No such file"):
        read_tracker(tmp_path / "data")


@pytest.mark.parametrize(
    "entries",
    [
        [],
        {"CVE-2026-0001": []},
        {"CVE-2026-0001": {"releases": []}},
        {"CVE-2026-0001": in_trixie("mended")},
        {"CVE-2026-0001": in_trixie("open", urgency="dreadful")},
        {"CVE-2026-0001": in_trixie("open", urgency=None)},
        {"CVE-2026-0001": in_trixie("resolved", fixed_version="a b")},
        {"CVE-2026-0001": in_trixie("resolved", fixed_version=1)},
        {"CVE-2026-0001": in_trixie("resolved", fixed_version="a:b:c")},
        {"CVE-2026-0001": in_trixie("resolved", fixed_version=":::")},
        {"CVE-2026-0001": in_trixie("resolved", fixed_version="1:")},
        {"\x1b]0;x\x07 CVE": in_trixie("open")},
        {"C" * 100_000: in_trixie("open")},
        {"": in_trixie("open")},
    ],
)
def test_nonsense_about_a_package_is_refused(entries: Any) -> None:
    with pytest.raises(InputError, match="security tracker's data: curl: "):
        found(curl=entries)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (allow("CVE-1"), "id"),
        (allow("CVE-2026-0001", "tomorrow"), "until"),
        ({"id": "CVE-2026-0001", "until": "2026-11-28"}, "reason"),
        (allow("CVE-2026-0001", reason=""), "reason"),
        (allow("CVE-2026-0001", package="-x"), "package"),
    ],
)
def test_allowance_has_an_id_a_reason_and_an_end(entry: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        rules("fixed", entry)


def test_vulnerability_is_allowed_once() -> None:
    with pytest.raises(ValueError, match="CVE-2026-0001 stands twice"):
        rules("fixed", allow("CVE-2026-0001"), allow("CVE-2026-0001", "2027-01-01"))
    both = rules("fixed", allow("CVE-2026-0001"), allow("CVE-2026-0001", package="curl"))
    assert isinstance(both.allow[0], Allowed)
