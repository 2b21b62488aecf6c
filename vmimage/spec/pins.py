"""Pins of images.yaml: third-party files by version and SHA-256, and where they and newer ones are."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from vmimage.spec.texts import Name, Shown, Text
from vmimage.util.model import Model


def _purl(text: str) -> str:
    # Few commands read a purl, and all read images.yaml.
    from packageurl import PackageURL

    PackageURL.from_string(text)
    return text


Arch = Literal["amd64", "arm64"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+~_-]*$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=2000), Shown]
Purl = Annotated[str, StringConstraints(pattern=r"^pkg:[^\s@?#]+$", max_length=200), AfterValidator(_purl)]
Distribution = Annotated[
    str,
    # As PEP 508 names it: what begins with a hyphen would be an option of pip.
    StringConstraints(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.+!]*$", max_length=200
    ),
]


def _fields(text: str) -> Iterator[str]:
    """Yield what is filled into a text, as it is written: `version:d`, `arch.x`."""
    for _, name, form, conversion in string.Formatter().parse(text):
        if name is not None:
            yield name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")


class Location(Model):
    """Where a pinned file may be had: exactly one of `url`, `path` and `pypi`.

    `member` leads into archives: each entry names a file in the tar or zip that the entry before gave.
    `sha256` is of the archive, before anything is taken out of it.
    """

    url: Url | None = Field(None, description="http(s); {version} and {arch} are filled in, percent-encoded")
    path: Text | None = Field(None, description="a local file, absolute or beside images.yaml; {version} and {arch}")
    pypi: Distribution | None = Field(
        None, description="NAME==VERSION of a Python distribution, obtained by `pip download`"
    )
    member: tuple[Text, ...] = Field((), strict=False, description="path of members through nested archives")
    sha256: dict[Arch, Sha256] = Field(
        default_factory=dict, description="of the archive that stands here; needs `member`"
    )
    arch: Arch | None = Field(None, description="only for this architecture")

    def serves(self, arch: Arch) -> bool:
        """Tell whether it is of use for an architecture."""
        return self.arch in (None, arch)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.url, self.path, self.pypi)) != 1:
            raise ValueError("give exactly one of url, path and pypi")
        texts = [self.url or self.path or "", *self.member]
        if {field for text in texts for field in _fields(text)} - {"version", "arch"}:
            raise ValueError("only {version} and {arch} are filled in")
        if self.path and self.path.startswith("~") and not self.path.startswith("~/"):
            raise ValueError("path: ~/ is the only home that is known; write another folder from / on")
        if self.pypi and not self.member:
            raise ValueError("a pypi location needs `member`, the file inside the distribution")
        if self.sha256 and not self.member:
            raise ValueError("sha256 of a location is that of an archive, and needs `member`; else the pin has it")
        if not all(self.serves(arch) for arch in self.sha256):
            raise ValueError(f"sha256 of another architecture than {self.arch}, for which this location is")
        return self


class Upstream(Model):
    """Where newer versions of a pin are published, with their SHA-256: what `invoke update` asks."""

    version: Url | None = Field(
        None, description="answers the newest version: as text, as a release of GitHub's API, or in channels of k3s"
    )
    channel: Text | None = Field(None, description="`version` answers channels, as k3s has them: take this one")
    follows: Name | None = Field(None, description="instead of `version`: this pin has the version of that one")
    skew: Name | None = Field(
        None, description="stay within one minor version of that pin: kubectl of the cluster's k3s"
    )
    minor: Url | None = Field(
        None, description="with `skew`: answers the newest version of a minor one; {minor} is filled in, as 1.36"
    )
    sha256: Url = Field(description="answers `SHA256  FILE` lines, or the SHA-256 alone; {version} and {arch}")
    arch: tuple[Arch, ...] = Field(
        (), strict=False, description="architectures to pin; those that the pin has, when not given"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.version is None) == (self.follows is None):
            raise ValueError("give exactly one of version and follows")
        if self.channel and not self.version:
            raise ValueError("channel: belongs to version")
        if self.skew and self.follows:
            raise ValueError("skew: not with follows, which says the version already")
        if self.minor and not self.skew:
            raise ValueError("minor: only with skew")
        filled = {self.version: set[str](), self.minor: {"minor"}, self.sha256: {"version", "arch"}}
        for url, known in filled.items():
            if url and (unknown := set(_fields(url)) - known):
                raise ValueError(f"{{{min(unknown)}}} is not filled in there")
        return self


class Pin(Model):
    """A third-party file: any location may serve it, since its SHA-256 decides.

    An architecture needs the SHA-256 of the file, here, or that of an archive with the file, at a location.
    """

    version: Version
    sha256: dict[Arch, Sha256] = Field(default_factory=dict, description="of the file itself")
    bytes: int | None = Field(
        None,
        ge=1,
        le=1 << 50,
        description="most bytes that the file, and archives it comes in, may have; 4 GiB when not given",
    )
    locations: tuple[Location, ...] = Field(strict=False, min_length=1)
    upstream: Upstream | None = Field(None, description="where `invoke update` looks for newer versions")
    purl: Purl | None = Field(
        None, description="what databases of vulnerabilities call it, a package URL without a version: for the SBOM"
    )
    license: Text | None = Field(None, description="its licences, as an SPDX expression: for the SBOM")

    @property
    def arches(self) -> tuple[Arch, ...]:
        """The architectures that it has a SHA-256 for."""
        maps = (self.sha256, *(location.sha256 for location in self.locations))
        return tuple(dict.fromkeys(arch for digests in maps for arch in digests))

    @model_validator(mode="after")
    def _has_a_digest(self) -> Self:
        if not self.arches:
            raise ValueError("sha256 is missing: give that of the file, or at a location that of the archive")
        return self
