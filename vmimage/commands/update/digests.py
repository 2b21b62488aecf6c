"""The SHA-256 digests that upstream publishes of a version of a pin: all that images.yaml has of the pin, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote

from vmimage.commands.update.answers import published_digest
from vmimage.commands.update.ask import Upstream, told
from vmimage.spec.pins import Arch, Location, Pin
from vmimage.util.location import UnavailableError


@dataclass(frozen=True, kw_only=True)
class Digests:
    """SHA-256 digests of a version of a pin.

    Attributes:
        file: Architecture -> that of the file.
        archives: Number of a location and architecture -> that of the archive there.
        unpacked: The same, where the one of the file has to be computed from it.
    """

    file: Mapping[Arch, str] = field(default_factory=dict)
    archives: Mapping[tuple[int, Arch], str] = field(default_factory=dict)
    unpacked: Mapping[tuple[int, Arch], str] = field(default_factory=dict)

    @property
    def shown(self) -> dict[str, str]:
        """Architecture -> what upstream publishes, for people and programs."""
        archives = {**self.archives, **self.unpacked}
        return {str(arch): each for (_, arch), each in archives.items()} | {
            str(arch): each for arch, each in self.file.items()
        }


def digests_of(name: str, pin: Pin, version: str, upstream: Upstream) -> Digests:
    """Return the digests of a version, for each architecture that is pinned, or that should be.

    Raises:
        UnavailableError: One of them is not known; or the version is the pinned one, and its digests are others.
    """
    file: dict[Arch, str] = {}
    archives: dict[tuple[int, Arch], str] = {}
    unpacked: dict[tuple[int, Arch], str] = {}
    for arch in dict.fromkeys((*pin.arches, *(pin.upstream.arch if pin.upstream else ()))):
        number, location = _published_location(name, pin, arch)
        digest = _asked(pin, _file_name(location, version, arch), version, arch, upstream)
        if not location.member:
            file[arch] = digest
        elif arch in pin.sha256 and version != pin.version:
            unpacked[number, arch] = digest
        if location.member and (arch in location.sha256 or arch not in pin.sha256):
            archives[number, arch] = digest
        archives |= {(other, arch): digest for other in _same_archives(name, pin, number, version, arch)}
    if version == pin.version:
        _require_same(name, pin, file, archives)
    return Digests(file=file, archives=archives, unpacked=unpacked)


def _asked(pin: Pin, file: str, version: str, arch: Arch, upstream: Upstream) -> str:
    if not pin.upstream:
        raise UnavailableError("no `upstream:` says where its SHA-256 is published")
    url = pin.upstream.sha256.format(version=quote(version, safe=""), arch=arch)
    text = upstream.text(url)
    try:
        return published_digest(text, file)
    except UnavailableError as error:
        raise told(upstream.instead_of(url), error) from None


def _published_location(name: str, pin: Pin, arch: Arch) -> tuple[int, Location]:
    """Return the location, and its number, whose file upstream publishes the digest of: the first with a URL."""
    for number, location in enumerate(pin.locations):
        if location.url and location.serves(arch):
            return number, location
    raise UnavailableError(f"pins.{name} has no location with a URL for {arch}, which says how upstream names the file")


def _same_archives(name: str, pin: Pin, number: int, version: str, arch: Arch) -> list[int]:
    """Return the other locations that name the digest of the same archive.

    Raises:
        UnavailableError: One names that of another archive.
    """
    first = pin.locations[number]
    found = [other for other, each in enumerate(pin.locations) if arch in each.sha256 and other != number]
    for other in found:
        each = pin.locations[other]
        if not first.member or _file_name(each, version, arch) != _file_name(first, version, arch):
            raise UnavailableError(
                f"pins.{name}.locations[{other}].sha256: upstream does not publish that of this archive; "
                "update this pin by hand, or take the location out"
            )
    return found


def _file_name(location: Location, version: str, arch: Arch) -> str:
    return PurePosixPath((location.url or location.path or "").format(version=version, arch=arch)).name


def _require_same(name: str, pin: Pin, file: Mapping[Arch, str], archives: Mapping[tuple[int, Arch], str]) -> None:
    """Refuse other digests of the pinned version than those that are pinned."""
    changed = [arch for arch, new in file.items() if pin.sha256.get(arch, new) != new]
    changed += [arch for (number, arch), new in archives.items() if pin.locations[number].sha256.get(arch, new) != new]
    if changed:
        raise UnavailableError(
            f"upstream publishes another SHA-256 of {name} {pin.version} for {changed[0]} than the pinned one: "
            "find out why before you trust it"
        )
