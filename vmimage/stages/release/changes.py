"""What has another version in an image than in another one: packages and pins. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmimage.disk.dpkg import newer
from vmimage.stages.release.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class VersionChange:
    """A package or pin whose version is not the same in both images; empty where it is not at all.

    Attributes:
        urgency: Of a package that is in both.
    """

    name: str
    before: str
    after: str
    urgency: str = ""

    @property
    def change(self) -> str:
        """In a word."""
        if self.urgency:
            return "upgraded" if newer(self.after, self.before) else "downgraded"
        return change_of(self.before or None, self.after or None)


def change_of(before: object, after: object) -> str:
    """Return what happened to something that is in one image, or in both."""
    return "added" if before is None else "removed" if after is None else "changed"


def version_changes(
    before: Mapping[str, str],
    after: Mapping[str, str],
    urgency: Callable[[str, str, str], str] = lambda *_: "",
) -> list[VersionChange]:
    """Return what has another version, or is in one of them only, in order of names.

    Args:
        urgency: Takes name, older and newer version of what was upgraded.
    """
    changes = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, ""), after.get(name, "")
        if old != new:
            said = urgency(name, old, new) if old and new else ""
            changes.append(VersionChange(name=name, before=old, after=new, urgency=said))
    return changes


@dataclass(frozen=True, kw_only=True)
class ReleaseChanges:
    """What a release has that the one before it had not, or had in another version."""

    version: str
    pins: list[VersionChange]
    packages: list[VersionChange]


def changes_since(before: Manifest, pins: Mapping[str, str], packages: Mapping[str, str]) -> ReleaseChanges:
    """Return what changed since an earlier release.

    Args:
        pins, packages: Name -> version, of the new release.
    """
    old = {name: pin.version for name, pin in before.pins.items()}
    return ReleaseChanges(
        version=before.version, pins=version_changes(old, pins), packages=version_changes(before.packages, packages)
    )
