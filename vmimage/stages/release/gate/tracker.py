"""What Debian's security tracker says of the packages in an image. Pure, but for reading the file.

Source: https://security-tracker.debian.org/tracker/data/json, an object: source package -> vulnerability -> `releases`
-> suite -> `status`, `fixed_version` ("0": this suite never had it), `urgency`, and `nodsa` where Debian's security
team publishes no advisory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from debsbom.dpkg.package import SourcePackage
from debsbom.securityscan.scanner import CveEntry, CveStatus, CveTriage, CveUrgency
from packageurl import PackageURL
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from vmimage.disk.dpkg import VERSION
from vmimage.stages.release.manifest import first_reason
from vmimage.util.errors import InputError
from vmimage.util.files import read_regular
from vmimage.util.json_file import parse_json

MOST_BYTES = 256 << 20
"""Of the tracker's data, which has some 70 MiB."""
MOST_VALUES = 8_000_000
"""Objects and lists in it, of which it has about a million: in memory, each is many times what it is in the file."""
LEAST_PACKAGES = 1000
"""In the tracker's data: what has fewer is something else, and would find nothing."""
URGENCIES = tuple(str(each) for each in CveUrgency)
HINT = "https://security-tracker.debian.org/tracker/data/json has them"

Version = Annotated[str, StringConstraints(pattern=f"^{VERSION.pattern}$")]
Text = Annotated[str, StringConstraints(max_length=1000)]
ID = re.compile(r"[A-Za-z0-9-]{1,60}")
"""CVE-2026-12345, or TEMP-0000000-0123AB."""


class Said(BaseModel):
    """Frozen, nothing coerced; the tracker may say more than is read here."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class SuiteEntry(Said):
    """What a vulnerability is in a suite."""

    status: Literal["open", "resolved", "undetermined"]
    urgency: Text
    fixed_version: Version | None = None
    nodsa: Text | None = None


class Entry(Said):
    """A vulnerability of a source package."""

    releases: dict[Text, SuiteEntry]


@dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """A known vulnerability in an image.

    Attributes:
        package: The source package.
        fixed: The version in which the suite has it mended; nothing where it has not.
        minor: Debian calls it unimportant, or publishes no advisory for it.
    """

    id: str
    package: str
    version: str
    fixed: str
    urgency: str
    minor: bool


def read_tracker(path: Path) -> Mapping[str, Any]:
    """Read the data of the security tracker.

    Raises:
        InputError: They are none, with the reason.
    """
    try:
        text = read_regular(path, MOST_BYTES, follow=True)
        if text.count(b"{") + text.count(b"[") > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} objects and lists")
        # Strictly: of a package that stands twice, half of what is known would not count.
        data = parse_json(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no data of Debian's security tracker: {error}", hint=HINT) from error
    if not isinstance(data, dict) or len(data) < LEAST_PACKAGES:
        raise InputError(
            f"{path}: no data of Debian's security tracker: fewer than {LEAST_PACKAGES} packages", hint=HINT
        )
    return data


def source_packages(cyclonedx: str) -> Iterator[tuple[str, str]]:
    """Yield (name, version) of the source packages that an SBOM lists."""
    for component in json.loads(cyclonedx)["components"]:
        purl = PackageURL.from_string(component["purl"])
        if purl.type == "deb" and purl.qualifiers.get("arch") == "source":
            yield purl.name, str(purl.version)


def find_vulnerabilities(cyclonedx: str, tracker: Mapping[str, Any], suite: str) -> list[Finding]:
    """Return the known vulnerabilities of an image, in order.

    Raises:
        InputError: The tracker says nonsense of one of its packages.
    """
    triage = CveTriage(tracker, suite)
    found = []
    for name, version in sorted(set(source_packages(cyclonedx))):
        _require_readable(name, tracker.get(name, {}))
        package = SourcePackage(name, version)
        for entry in triage.candidates(package):
            if triage.affected_by(package, entry):
                found.append(_finding(entry, name, version))
    return sorted(found)


def _finding(entry: CveEntry, name: str, version: str) -> Finding:
    fixed = (entry.fixed_version or "") if entry.status == CveStatus.RESOLVED else ""
    minor = entry.urgency == CveUrgency.UNIMPORTANT or entry.nodsa is not None
    return Finding(id=entry.cve, package=name, version=version, fixed=fixed, urgency=str(entry.urgency), minor=minor)


def _require_readable(package: str, entries: Any) -> None:
    """Check what the tracker says of a package before the library takes it for true."""
    try:
        if not isinstance(entries, dict):
            raise ValueError("no object")
        for name, entry in entries.items():
            if not ID.fullmatch(name):
                raise ValueError(f"no name of a vulnerability: {name[:80]!r}")
            for suite, facts in Entry.model_validate(entry).releases.items():
                if facts.urgency.replace(" ", "-") not in URGENCIES:
                    raise ValueError(f"{name}: {suite}: unknown urgency {facts.urgency!r:.40}")
    except ValidationError as error:
        raise InputError(f"security tracker's data: {package}: {first_reason(error)}", hint=HINT) from None
    except ValueError as error:
        raise InputError(f"security tracker's data: {package}: {error}", hint=HINT) from None
