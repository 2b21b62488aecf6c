"""images.yaml as frozen, typed models.

The models are the one source: they check the file, and `invoke schema` writes the JSON schema that
editors use from them.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, create_model, model_validator

from vmimage.formats.all import FORMATS
from vmimage.spec.pins import Pin
from vmimage.spec.texts import Name, Shown, Text
from vmimage.spec.vulnerabilities import Vulnerabilities
from vmimage.util.errors import InputError
from vmimage.util.model import Model
from vmimage.util.ports import FORWARDS, MAX_PORT

MOST_NAME, MOST_KNOWN = 80, 100
"""Characters of a word, and words, that are compared for one that may have been meant: it takes its time."""
LEAST_DISK = 8 << 30
"""The root file system is made at this size (sparse) and grows at first boot to the disk it then has."""
MOST_DISK = 1 << 40
"""Larger ones are of no use: the root file system grows to the disk that a machine is given."""
LEAST_MEMORY = 256 << 20
MOST_MEMORY = 1 << 40
MOST_PORTS = 256
"""Each is a rule in VirtualBox, an argument and an open file of QEMU."""


Package = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
Unpacked = Annotated[str, StringConstraints(pattern=r"^(/[^/\s,]+){2,}$", max_length=500), Shown]
KernelModule = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
Size = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]* (MiB|GiB)$", max_length=30)]


def _known_ports(text: str) -> str:
    first, last = map(int, text.split("-"))
    if not first <= last <= MAX_PORT:
        raise ValueError(f"FIRST-LAST, none above {MAX_PORT}")
    if last - first >= MOST_PORTS:
        raise ValueError(f"{last - first + 1} ports, {MOST_PORTS} at most")
    for name, forward in FORWARDS.items():
        if first <= forward.host <= last:
            raise ValueError(f"{forward.host} is in this range, and leads to every machine already ({name})")
    return text


PortRange = Annotated[
    str, StringConstraints(pattern=r"^[1-9][0-9]{3,4}-[1-9][0-9]{3,4}$"), AfterValidator(_known_ports)
]
SEAL_STEP = "99-seal.sh"


def _no_seal(script: str) -> str:
    if script.partition("-")[2] == SEAL_STEP.partition("-")[2]:
        raise ValueError(f"{SEAL_STEP} ends every bake by itself, so no step of a component has its name")
    return script


StepScript = Annotated[
    str, StringConstraints(pattern=r"^[0-9]{2}-[a-z0-9-]+\.sh$", max_length=60), AfterValidator(_no_seal)
]


def _between(least: int, most: int) -> AfterValidator:
    """Bound a size, in bytes."""

    def check(size: str) -> str:
        if size_bytes(size) < least:
            raise ValueError(f"{size} is less than {_told(least)}")
        if size_bytes(size) > most:
            raise ValueError(f"{size} is more than {_told(most)}")
        return size

    return AfterValidator(check)


def _told(size: int) -> str:
    return f"{size >> 30} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"


DiskSize = Annotated[Size, _between(LEAST_DISK, MOST_DISK)]
MemorySize = Annotated[Size, _between(LEAST_MEMORY, MOST_MEMORY)]


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), "")
    if twice:
        raise ValueError(f"{twice!r} stands there twice")
    return names


Once = AfterValidator(_once)


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
    close = difflib.get_close_matches(word[:MOST_NAME], known[:MOST_KNOWN], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class Base(Model):
    """An operating-system disk before any component."""

    suite: Name
    arch: Literal["amd64"] = "amd64"
    refresh: Literal["daily", "weekly", "never"] | None = Field(
        None, description="how often the packages are taken from the mirror anew; weekly when nothing is said"
    )
    snapshot: AwareDatetime | None = Field(
        None,
        strict=False,
        description="instead of `refresh`: the packages as Debian had them at this moment, 2026-11-25T00:00:00Z",
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

    @model_validator(mode="after")
    def _fresh_or_frozen(self) -> Self:
        if self.refresh and self.snapshot:
            raise ValueError("give `refresh` or `snapshot`: what is frozen is not taken anew")
        return self


class Component(Model):
    """Something an image contains: packages for its base, pinned files, one provision step, one test file."""

    summary: Text
    step: StepScript | None = Field(None, description="script in provision/")
    pins: Annotated[tuple[Name, ...], Once] = Field((), strict=False, description="pinned files that the step installs")
    packages: tuple[Package, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _pins_have_a_step(self) -> Self:
        if self.pins and not self.step:
            raise ValueError("pins are installed by a step: give one, or move them to a component that has one")
        return self


class MachineSpec(Model):
    """The virtual hardware that an image asks for."""

    cpus: int = Field(2, ge=1, le=64)
    memory: MemorySize = "4 GiB"
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
    components: Annotated[tuple[Name, ...], Once] = Field(strict=False, min_length=1)
    disk: DiskSize = "40 GiB"
    machine: MachineSpec = Field(default_factory=lambda: MachineSpec(cpus=2))
    formats: AllFormats


class Spec(Model):
    """All of images.yaml."""

    default: Name = Field(description="the image that `invoke build-image` builds when none is named")
    bases: dict[Name, Base] = Field(min_length=1)
    pins: dict[Name, Pin] = Field(default_factory=dict)
    components: dict[Name, Component] = Field(min_length=1)
    images: dict[Name, Image] = Field(min_length=1)
    vulnerabilities: Vulnerabilities = Field(
        default_factory=lambda: Vulnerabilities(block="fixed", allow=()),
        description="which known ones keep an image from being released",
    )

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
