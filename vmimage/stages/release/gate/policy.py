"""Which vulnerabilities of an image keep it from being released. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from vmimage.spec.vulnerabilities import Allowed, Vulnerabilities
from vmimage.stages.release.gate.tracker import Finding


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the rules say of an image.

    Attributes:
        blocking: Each with the entry of the rules that allowed it for a time which is over, if there is one.
        allowed: Each with the entry that allows it.
        passed: How many others the rules do not ask about.
        unused: Entries that speak of nothing in this image.
    """

    blocking: Sequence[tuple[Finding, Allowed | None]]
    allowed: Sequence[tuple[Finding, Allowed]]
    passed: int
    unused: Sequence[Allowed]


def judge(findings: Sequence[Finding], rules: Vulnerabilities, today: date) -> Judgement:
    """Compare what was found with the rules."""
    blocking: list[tuple[Finding, Allowed | None]] = []
    allowed: list[tuple[Finding, Allowed]] = []
    for finding in findings:
        entries = [entry for entry in rules.allow if entry.covers(finding.id, finding.package)]
        good = next((entry for entry in entries if entry.until >= today), None)
        if not blocks(finding, rules):
            continue
        if good:
            allowed.append((finding, good))
        else:
            blocking.append((finding, entries[0] if entries else None))
    used = {entry for entry in rules.allow for each in findings if entry.covers(each.id, each.package)}
    return Judgement(
        blocking=blocking,
        allowed=allowed,
        passed=len(findings) - len(blocking) - len(allowed),
        unused=[entry for entry in rules.allow if entry not in used],
    )


def blocks(finding: Finding, rules: Vulnerabilities) -> bool:
    """Tell whether the rules ask about a vulnerability, allowed or not."""
    return bool(finding.fixed) or (rules.block == "open" and not finding.minor)


def blocked_line(finding: Finding, over: Allowed | None) -> str:
    """Return what people read of a vulnerability that blocks."""
    mended = f"mended in {finding.fixed}" if finding.fixed else f"not mended, urgency {finding.urgency}"
    was = f"; it was allowed until {over.until}" if over else ""
    return f"{finding.id}: {finding.package} {finding.version}, {mended}{was}"
