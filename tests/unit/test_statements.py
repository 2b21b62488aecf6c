"""What is stated of a release: SLSA provenance and the verdict, from its manifest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmimage.publish.dsse import pae
from vmimage.publish.statements import PROVENANCE, TEST_RESULT, provenance, require_statement, verdict
from vmimage.publish.sums import parse_sums
from vmimage.util.errors import VerifyError

SHA = "ab" * 32
MANIFEST: dict[str, Any] = {
    "image": "toolbox",
    "version": "20261127-01234567",
    "released": "2026-11-27T10:00:00+00:00",
    "suite": "trixie",
    "machine": {"cpus": 2, "memory": "2 GiB"},
    "files": {"qcow2": {"name": "toolbox.qcow2", "bytes": 1, "sha256": "01" * 32}},
    "git": {"commit": "c0" * 20, "changed": [" M tasks.py"]},
    "pins": {"kubectl": {"version": "v1", "sha256": SHA}, "unpinned": {"version": "1"}},
    "packages": {"sshfs": "3.7.3-1.1+b1", "base-files": "1:13~rc1"},
    "debs": [{"package": "sshfs", "version": "3.7.3-1.1+b1", "sha256": "ef" * 32}],
    "tools": {"packer": "1.6.6"},
    "host": {"cpus": 2},
    "inputs": {"base": {"edition": 3, "files": {"provision/base.sh": f"x {SHA}"}},
               "bake": {"layers": [{"files": {"provision/20-tool.sh": "cd" * 32}}]}},
    "verdict": {"passed": True, "accelerator": "tcg", "started": "then", "checks": [{"name": "disk"}]},
}  # fmt: skip


def test_provenance_names_what_was_asked_for_all_inputs_and_the_tools() -> None:
    made: Any = provenance(MANIFEST, SHA)
    assert made["predicateType"] == "https://slsa.dev/provenance/v1"
    assert made["subject"] == [{"name": "toolbox.qcow2", "digest": {"sha256": "01" * 32}}]
    definition, details = made["predicate"]["buildDefinition"], made["predicate"]["runDetails"]
    assert definition["externalParameters"] == {name: MANIFEST[name] for name in ("image", "suite", "machine")}
    assert definition["resolvedDependencies"] == [
        {"name": "sources", "digest": {"gitCommit": "c0" * 20}, "annotations": {"changed": [" M tasks.py"]}},
        {"name": "kubectl", "digest": {"sha256": SHA}, "annotations": {"version": "v1"}},
        {"name": "provision/20-tool.sh", "digest": {"sha256": "cd" * 32}},
        {"name": "provision/base.sh", "digest": {"sha256": SHA}},
        {"uri": "pkg:deb/debian/sshfs@3.7.3-1.1%2Bb1", "digest": {"sha256": "ef" * 32}},
        {"uri": "pkg:deb/debian/base-files@1%3A13~rc1"},
    ]
    assert details["builder"]["version"] == {"packer": "1.6.6"}
    assert details["byproducts"] == [{"name": "manifest.json", "digest": {"sha256": SHA}}]
    # What SLSA requires of a builder and a build type.
    assert all(":" in each for each in (details["builder"]["id"], definition["buildType"]))


def test_verdict_is_a_test_result() -> None:
    made: Any = verdict(MANIFEST, SHA)
    assert made["predicate"] == {
        "result": "PASSED",
        "configuration": [
            {
                "name": "manifest.json",
                "digest": {"sha256": SHA},
                "annotations": {"accelerator": "tcg", "started": "then"},
            }
        ],
        "passedTests": ["disk"],
        "warnedTests": [],
        "failedTests": [],
    }


@pytest.mark.parametrize(("ran", "kind"), [(True, "passedTests"), (False, "warnedTests")])
def test_verdict_tells_whether_the_gate_ran(ran: bool, kind: str) -> None:
    found = {**MANIFEST["verdict"], "vulnerabilities": {"ran": ran}}
    made: Any = verdict({**MANIFEST, "verdict": found}, SHA)
    assert "known-vulnerabilities" in made["predicate"][kind]
    assert made["predicate"]["configuration"][0]["annotations"]["vulnerabilities"] == {"ran": ran}


@pytest.mark.parametrize("left_out", ["git", "pins", "packages", "tools", "host", "inputs", "suite"])
@pytest.mark.parametrize("value", [None, {}, []])
def test_manifest_that_says_less(left_out: str, value: object) -> None:
    told = {**MANIFEST, left_out: value}
    files = {"toolbox.qcow2": "01" * 32}
    for made, kind in ((provenance(told, SHA), PROVENANCE), (verdict(told, SHA), TEST_RESULT)):
        require_statement(json.loads(json.dumps(made)), kind, files, "x")


def test_what_is_signed_is_the_encoding_of_dsse() -> None:
    # The example of DSSE's protocol, with the type of in-toto.
    assert pae(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


@pytest.mark.parametrize(
    "text",
    ["x", f"{SHA} a", f"{SHA}  ../a", f"{SHA}  /a", f"{SHA}  a/b", f"{SHA}  a\r", f"{SHA[1:]}  a", f"{SHA.upper()}  a",
     f"{SHA}  a\n\n", f"{SHA}  a\n{SHA}  a\n", f"{SHA}  .a", f"{SHA}  {'a' * 300}", f"{SHA} *a", "\xff"],
)  # fmt: skip
def test_sums_that_are_none(text: str) -> None:
    with pytest.raises(VerifyError, match=r"SHA256SUMS:\d: (no digest and name|a name that stands twice)"):
        parse_sums(text.encode("latin-1"))


def test_sums() -> None:
    assert parse_sums(f"{SHA}  a\n{SHA}  b.c+d_e-f\n".encode()) == {"a": SHA, "b.c+d_e-f": SHA}
