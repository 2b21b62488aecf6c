"""manifest.json of a release as a model. It may come from anybody, so it is bounded and checked before it is used.

Other keys of a manifest (`host`, `inputs`, …) are for people and other programs. They are allowed, and not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from vmimage.formats.all import BY_NAME
from vmimage.spec.model import Size, port_range
from vmimage.spec.pins import Sha256
from vmimage.spec.texts import Name
from vmimage.stages.release.version import is_version
from vmimage.util.json_file import read_json
from vmimage.util.ports import MAX_PORT

MANIFEST = "manifest.json"
MOST_BYTES = 4 << 20
MOST_FILE_BYTES = 1 << 60
MOST_CPUS = 4096


def _version(text: str) -> str:
    if not is_version(text):
        raise ValueError("no version of a release")
    return text


def _ports(text: str) -> str:
    ports = port_range(text)
    if not ports or ports[-1] > MAX_PORT:
        raise ValueError("no range of ports")
    return text


Text = Annotated[str, StringConstraints(max_length=200)]
Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=200)]
FormatName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.]+$", max_length=40)]
Ports = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,4}-[1-9][0-9]{0,4}$"), AfterValidator(_ports)]
Memory = Annotated[Size, StringConstraints(max_length=16)]


class Facts(BaseModel):
    """Frozen, nothing coerced; unlike a file that people write, it may say more than is known here."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class ReleasedFile(Facts):
    """A file of a release, in its folder."""

    name: FileName
    bytes: int = Field(ge=0, le=MOST_FILE_BYTES)
    sha256: Sha256


class MachineFacts(Facts):
    """The virtual hardware that an image asks for; wider than what images.yaml allows today."""

    cpus: int = Field(ge=1, le=MOST_CPUS)
    memory: Memory
    ports: Ports | None = None


class PinFacts(Facts):
    """A pinned file that an image was made with."""

    version: Text
    sha256: Sha256 | None = None


class StageFacts(Facts):
    """What a stage took; `key` names its result in the cache."""

    key: Key | None = None


class VerifiedFile(Facts):
    """A file that a verdict speaks of."""

    sha256: Sha256


class CheckFacts(Facts):
    """A check of a verdict."""

    name: Text


class VerdictFacts(Facts):
    """A passing verdict."""

    passed: Literal[True]
    files: dict[FormatName, VerifiedFile]
    checks: list[CheckFacts]

    @property
    def digests(self) -> dict[str, str]:
        """Format -> SHA-256 of the file."""
        return {kind: file.sha256 for kind, file in self.files.items()}

    @property
    def machines(self) -> set[str]:
        """The names of its checks."""
        return {check.name for check in self.checks}


class Manifest(Facts):
    """What a release says of itself."""

    image: Name
    version: Annotated[str, AfterValidator(_version)]
    released: Text
    files: dict[FormatName, ReleasedFile] = Field(min_length=1)
    machine: MachineFacts
    verdict: VerdictFacts
    components: list[Text] = Field(default_factory=list)
    pins: dict[Text, PinFacts] = Field(default_factory=dict)
    packages: dict[Text, Text] = Field(default_factory=dict)
    stages: dict[Text, StageFacts] = Field(default_factory=dict)
    build_key: Annotated[str, StringConstraints(max_length=2000)] = ""

    @model_validator(mode="after")
    def _files_can_be_used(self) -> Self:
        if not set(self.files) & set(BY_NAME):
            raise ValueError(f"files: none of them is a {', '.join(BY_NAME)}")
        names = [file.name for file in self.files.values()]
        if len(set(names)) < len(names):
            raise ValueError("files: two have one name")
        for kind, file in self.files.items():
            if self.verdict.digests.get(kind) != file.sha256:
                raise ValueError(f"verdict: it does not speak of these bytes of the {kind}")
        return self


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.json.

    Raises:
        ValueError: It is none, with the reason; or it cannot be read.
    """
    return manifest_of(read_json(path, MOST_BYTES))


def manifest_of(data: object) -> Manifest:
    """Check what a manifest.json says.

    Raises:
        ValueError: It does not fit, with the first reason.
    """
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise ValueError(first_reason(error)) from None


def first_reason(error: ValidationError) -> str:
    """Return the first thing that a model says is wrong, in a line: where, and what."""
    details = error.errors(include_url=False)[0]
    where = ".".join(map(str, details["loc"]))
    message = details["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def verdict_of(data: Mapping[str, object]) -> VerdictFacts | None:
    """Return a verdict as a model; None when it is no passing one."""
    try:
        return VerdictFacts.model_validate(data)
    except ValidationError:
        return None
