"""What is signed of a release beside its digests: how it was made, and that these very bytes were booted.

Both are in-toto Statements. Their subjects are the image files. They say what manifest.json says, in words that other
programs read. Sources: https://github.com/in-toto/attestation (spec/v1/statement.md, spec/predicates/test-result.md)
and https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from vmimage.publish import AGAIN
from vmimage.stages.release.manifest import MANIFEST, first_reason
from vmimage.util.errors import VerifyError

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
BUILD_TYPE = "urn:x-vmimage:build-image:1"
GATE = "known-vulnerabilities"
"""A test that has passed, or has not run."""
BUILDER = "urn:x-vmimage:own-host"
"""Whoever has the key builds where they want: nothing but the signature vouches for the builder."""
FILE = re.compile(r"(?:[x-] )?([0-9a-f]{64})")
"""How the inputs of a stage tell a file: whether it is executable, and its SHA-256."""
MOST_SUBJECTS = 1000

Text = Annotated[str, StringConstraints(max_length=1000)]


class Said(BaseModel):
    """Frozen, nothing coerced; a statement may say more than is known here, as in-toto wants it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class Subject(Said):
    """A file that a statement speaks of."""

    name: Text
    digest: dict[Text, Text]


class Statement(Said):
    """An in-toto Statement."""

    kind: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[Subject] = Field(min_length=1, max_length=MOST_SUBJECTS)
    predicate_type: Text = Field(alias="predicateType")
    predicate: dict[str, Any]


# --- To make ---------------------------------------------------------------------------------------------


def provenance(manifest: Mapping[str, Any], manifest_digest: str) -> dict[str, object]:
    """Return how a release was made, as SLSA provenance: what was asked for, the inputs with digests, the tools.

    Args:
        manifest: The release's manifest.json; what it does not say is left out.
        manifest_digest: SHA-256 of this file.
    """
    asked = ("image", "summary", "suite", "arch", "disk_bytes", "machine", "components")
    tools = {name: str(version) for name, version in _mapping(manifest, "tools").items()}
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {name: manifest[name] for name in asked if name in manifest},
        "internalParameters": {name: manifest[name] for name in ("inputs", "host") if name in manifest},
        "resolvedDependencies": list(_dependencies(manifest)),
    }
    details = {
        "builder": {"id": BUILDER, "version": tools},
        "metadata": {"invocationId": f"{manifest['image']}/{manifest['version']}", "finishedOn": manifest["released"]},
        "byproducts": [_described(MANIFEST, manifest_digest)],
    }
    return _statement(manifest, PROVENANCE, {"buildDefinition": definition, "runDetails": details})


def verdict(manifest: Mapping[str, Any], manifest_digest: str) -> dict[str, object]:
    """Return the verdict of booting the files of a release, as a test result. Arguments as those of `provenance`."""
    found = manifest["verdict"]
    facts = {name: found[name] for name in ("accelerator", "started", "vulnerabilities") if name in found}
    gate = found.get("vulnerabilities")
    passed, warned = ([GATE], []) if gate and gate["ran"] else ([], [GATE] if gate else [])
    predicate = {
        "result": "PASSED",
        "configuration": [_described(MANIFEST, manifest_digest, facts)],
        "passedTests": [*(check["name"] for check in found["checks"]), *passed],
        "warnedTests": warned,
        "failedTests": [],
    }
    return _statement(manifest, TEST_RESULT, predicate)


def _statement(manifest: Mapping[str, Any], kind: str, predicate: Mapping[str, object]) -> dict[str, object]:
    files = manifest["files"].values()
    return {
        "_type": STATEMENT,
        "subject": [{"name": file["name"], "digest": {"sha256": file["sha256"]}} for file in files],
        "predicateType": kind,
        "predicate": predicate,
    }


def _dependencies(manifest: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """Yield all that an image was made from: the sources, pinned files, files of the project, Debian packages."""
    git = _mapping(manifest, "git")
    if git.get("commit"):
        yield {
            "name": "sources",
            "digest": {"gitCommit": git["commit"]},
            "annotations": {"changed": git.get("changed", [])},
        }
    for name, pin in _mapping(manifest, "pins").items():
        if pin.get("sha256"):
            yield _described(name, pin["sha256"], {"version": pin["version"]})
    files: dict[str, str] = {}
    for inputs in _mapping(manifest, "inputs").values():
        files |= dict(_digests(inputs))
    for name, digest in sorted(files.items()):
        yield _described(name, digest)
    digests = {deb["package"]: deb["sha256"] for deb in manifest.get("debs", [])}
    for name, version in _mapping(manifest, "packages").items():
        uri = f"pkg:deb/debian/{quote(name, safe='')}@{quote(str(version), safe='')}"
        yield {"uri": uri} | ({"digest": {"sha256": digests[name]}} if name in digests else {})


def _digests(inputs: object) -> Iterator[tuple[str, str]]:
    """Yield (path, SHA-256) of the files of the project that the inputs of a stage name, wherever they stand."""
    if isinstance(inputs, Mapping):
        for name, value in inputs.items():
            digest = FILE.fullmatch(value) if isinstance(value, str) and "/" in name else None
            if digest:
                yield name, digest[1]
            else:
                yield from _digests(value)
    elif isinstance(inputs, list):
        for each in inputs:
            yield from _digests(each)


def _described(name: str, digest: str, annotations: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return a ResourceDescriptor of in-toto."""
    return {"name": name, "digest": {"sha256": digest}, **({"annotations": annotations} if annotations else {})}


def _mapping(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = manifest.get(name)
    return found if isinstance(found, Mapping) else {}


# --- To check --------------------------------------------------------------------------------------------


def require_statement(data: object, kind: str, files: Mapping[str, str], what: str) -> Statement:
    """Check that a statement is of a kind, and speaks of exactly these files.

    Args:
        files: Name -> SHA-256 of the image files of the release.
        what: What the statement is called in errors.

    Raises:
        VerifyError: It does not, or tells of a bad verdict.
    """
    try:
        statement = Statement.model_validate(data)
    except ValidationError as error:
        raise VerifyError(f"{what} holds no in-toto statement: {first_reason(error)}", hint=AGAIN) from None
    if statement.predicate_type != kind:
        raise VerifyError(f"{what} states {statement.predicate_type}, not {kind}", hint=AGAIN)
    found = {subject.name: subject.digest.get("sha256") for subject in statement.subject}
    if found != dict(files) or len(found) != len(statement.subject):
        other = next(iter({*found.items()} ^ {*files.items()}), ("a file twice", ""))[0]
        raise VerifyError(f"{what} is the statement of another release: {other} differs", hint=AGAIN)
    if kind == TEST_RESULT and statement.predicate.get("result") != "PASSED":
        raise VerifyError(f"{what} is no passing verdict: {statement.predicate.get('result')!s:.40}", hint=AGAIN)
    return statement
