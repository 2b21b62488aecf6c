"""Which known vulnerabilities keep an image from being released: `vulnerabilities:` of images.yaml."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from vmimage.spec.texts import Text
from vmimage.util.model import Model

Vulnerability = Annotated[str, StringConstraints(pattern=r"^(CVE-[0-9]{4}-[0-9]{4,}|TEMP-[0-9]{7}-[0-9A-F]{6})$")]
SourcePackage = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]*$", max_length=200)]


class Allowed(Model):
    """A vulnerability with which an image is released all the same, for a time."""

    id: Vulnerability = Field(description="as Debian's security tracker calls it: CVE-2026-1234")
    package: SourcePackage | None = Field(None, description="only in this source package of Debian")
    reason: Text = Field(description="why it does no harm here")
    until: date = Field(strict=False, description="the last day on which it is allowed, YYYY-MM-DD")

    def covers(self, vulnerability: str, package: str) -> bool:
        """Tell whether it speaks of a vulnerability of a source package."""
        return self.id == vulnerability and self.package in (None, package)


def _once(entries: tuple[Allowed, ...]) -> tuple[Allowed, ...]:
    seen = set[tuple[str, str | None]]()
    for entry in entries:
        if (entry.id, entry.package) in seen:
            raise ValueError(f"{entry.id} stands twice")
        seen.add((entry.id, entry.package))
    return entries


class Vulnerabilities(Model):
    """What `invoke build-image --gate` lets pass."""

    block: Literal["fixed", "open"] = Field(
        "fixed",
        description="fixed: those that Debian has mended in this suite, and this image has not. "
        "open: also those that Debian has not mended, but for what it calls unimportant or minor (no-dsa)",
    )
    allow: Annotated[tuple[Allowed, ...], AfterValidator(_once)] = Field((), strict=False, max_length=1000)
