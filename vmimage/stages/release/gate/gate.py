"""The gate before a release: no image with vulnerabilities that Debian has mended already."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from vmimage.spec.vulnerabilities import Vulnerabilities
from vmimage.stages.fetch import reason_of
from vmimage.util.console import Step
from vmimage.util.errors import VerifyError
from vmimage.util.files import expanded
from vmimage.util.location import UnavailableError
from vmimage.util.masking import masked
from vmimage.util.settings import Bounds
from vmimage.util.urls import is_safe

TRACKER = "https://security-tracker.debian.org/tracker/data/json"
MOST_TOLD = 50
"""Vulnerabilities that an error names one by one."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What is asked before an image is released.

    Attributes:
        data: A file, or the URL of one.
        warn: Takes what people should know and what stops nothing.
    """

    rules: Vulnerabilities
    suite: str
    today: date
    bounds: Bounds
    warn: Callable[[str], None] = field(repr=False)
    data: str = TRACKER

    def check(self, cyclonedx: str, work: Path, step: Step) -> Mapping[str, object]:
        """Check the SBOM of an image; returns what its verdict says of it.

        Args:
            work: A folder for what is downloaded.

        Raises:
            VerifyError: The image is not to be released.
            InputError: The data are none.
        """
        from vmimage.stages.release.gate.policy import blocked_line, judge
        from vmimage.stages.release.gate.tracker import find_vulnerabilities, read_tracker

        step.now("known vulnerabilities")
        source = masked(self.data)
        try:
            file = self._file(work, step)
        except UnavailableError as error:
            why = f"{source}: {error}"
            self.warn(f"the gate did not run: {why}\n  --security-data FILE takes a copy of these data")
            return {"ran": False, "why": why}
        findings = find_vulnerabilities(cyclonedx, read_tracker(file), self.suite)
        found = judge(findings, self.rules, self.today)
        for entry in found.unused:
            self.warn(f"images.yaml: vulnerabilities: {entry.id} is allowed, and not in this image")
        if found.blocking:
            lines = [blocked_line(*each) for each in found.blocking[:MOST_TOLD]]
            more = len(found.blocking) - len(lines)
            told = "\n    ".join([*lines, *([f"and {more} more"] if more else [])])
            raise VerifyError(
                f"the image has known vulnerabilities that the gate does not let pass:\n    {told}",
                hint="if your mirror has the mended packages, build with `--from base`; else see docs/building.md#gate",
            )
        with file.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        return {
            "ran": True,
            "data": {"source": source, "sha256": digest},
            "block": self.rules.block,
            "allowed": [
                {"id": finding.id, "package": finding.package, "reason": entry.reason, "until": str(entry.until)}
                for finding, entry in found.allowed
            ],
            "passed": found.passed,
        }

    def _file(self, work: Path, step: Step) -> Path:
        """Return the file with the data.

        Raises:
            UnavailableError: It cannot be downloaded.
        """
        if "://" not in self.data:
            return expanded(self.data, "--security-data")
        if not is_safe(self.data):
            raise UnavailableError("is refused: only https proves who answers (http only to this host itself)")
        from vmimage.util.download import download

        to = work / "security-tracker.json"
        try:
            download(self.data, to, step.bar("security tracker"), replace(self.bounds, believed=True))
        except Exception as error:  # whatever a server does, the answer is that the gate did not run
            raise UnavailableError(reason_of(error)) from error
        return to
