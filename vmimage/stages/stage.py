"""The contract of a stage: what it is made from is all that it reads, so its key cannot lie.

The fields of a stage are its inputs; the key of its result is their digest. What `make` needs beside them, and what
changes nothing about the result (where the cache is, what runs guests), comes in the build's context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from vmimage.cache.changes import why_new
from vmimage.cache.result import AFTER, Result, stage_key
from vmimage.cache.store import Store
from vmimage.util.console import Step
from vmimage.vm.accelerator import Accelerator

NO_INPUT = {"input": False}
"""Metadata of a field that changes nothing about the result."""


@dataclass(kw_only=True, eq=False)
class BuildContext:
    """What a build works with, and what it notes on the way; nothing here changes a result.

    Attributes:
        today: The user's day, which a new release is named by.
        accelerator: Finds out what runs guests here, when it is needed.
        evidence: Where to copy what was seen in verify when the verdict is bad.
        keep: Where the disk of a machine that failed goes, ready to be opened.
        gate: Takes the SBOM of an image (CycloneDX), a folder to work in, and the step. Returns what the verdict is to
            say of known vulnerabilities, or raises VerifyError. None when nobody asks.
        start_step: Index of the provision step from which on all are run again.
        seconds: How long each stage of this build took so far.
        made: Names of the stages whose result this build made, and did not find.
    """

    store: Store
    dist: Path
    today: date
    accelerator: Callable[[], Accelerator]
    evidence: Path | None = None
    keep: Path | None = None
    gate: Callable[[str, Path, Step], Mapping[str, object]] | None = None
    start_step: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Keyed:
    """Something that is named by what it is made from.

    Attributes:
        name: Of its kind: "bake".
        edition: Raised when the code makes something else from the same inputs.
        after: What it is made from.
    """

    name: ClassVar[str]
    edition: ClassVar[int]

    after: Keyed | None = None

    @cached_property
    def inputs(self) -> Mapping[str, object]:
        """All that it is made from, as JSON-like data."""
        own = {
            each.name: plain(getattr(self, each.name))
            for each in fields(self)
            if _is_input(each.metadata) and each.name != AFTER
        }
        built_on = {AFTER: self.after.id} if self.after else {}
        return {"edition": self.edition, **built_on, **own}

    @property
    def key(self) -> str:
        """The key of its result."""
        return stage_key(self.inputs)

    @property
    def id(self) -> str:
        """NAME/KEY."""
        return f"{self.name}/{self.key}"


@dataclass(frozen=True, kw_only=True)
class Stage(Keyed, ABC):
    """A stage of the pipeline, for one image."""

    context: BuildContext = field(metadata=NO_INPUT, compare=False, repr=False)

    @property
    @abstractmethod
    def why(self) -> str:
        """What it will do, in a line for people."""

    @abstractmethod
    def make(self, work: Path, step: Step) -> Mapping[str, object]:
        """Make its result in the folder `work`; returns facts to note with it.

        Raises:
            VmimageError: It failed.
        """

    @abstractmethod
    def is_there(self) -> bool:
        """Tell whether its result is there already."""

    @abstractmethod
    def obtain(self, step: Step, *, fresh: bool, check: bool) -> None:
        """Make its result, if it is not there.

        Args:
            fresh: Make it again even if it is.
            check: Compare the bytes of one that is there; if they changed, make it again.

        Raises:
            VmimageError: It failed; nothing half-made is left.
        """

    @abstractmethod
    def planned(self) -> Iterator[tuple[str, str, str]]:
        """Yield (name, state, what and why) of what a build would do, for `invoke plan`."""


@dataclass(frozen=True, kw_only=True)
class StoredStage(Stage):
    """A stage whose result is kept in the cache, under its key."""

    @property
    def made_from(self) -> StoredStage | None:
        """The stage whose result it reads."""
        return self.after if isinstance(self.after, StoredStage) else None

    def find(self) -> Result | None:
        """Return its result, if that is there and made from what is there of the stage before."""
        below = self.made_from.find() if self.made_from else None
        if self.made_from and not below:
            return None
        return self.context.store.find(self.name, self.inputs, below=below)

    @property
    def result(self) -> Result:
        """Its result, which was obtained before."""
        found = self.find()
        assert found  # noqa: S101 - this build holds it
        return found

    def is_there(self) -> bool:
        return self.find() is not None

    def obtain(self, step: Step, *, fresh: bool, check: bool) -> None:
        found = self.context.store.get_or_make(
            self.name,
            self.inputs,
            lambda work: self.make(work, step),
            step,
            below=self.made_from.result if self.made_from else None,
            fresh=fresh,
            check=check,
        )
        if not found.cached:
            self.context.made.add(self.name)

    def planned(self) -> Iterator[tuple[str, str, str]]:
        yield planned(self, self.why, self.find(), self.context.store)


def planned(stage: Keyed, what: str, found: Result | None, store: Store) -> tuple[str, str, str]:
    """Return the line of `invoke plan` for a stage, or a layer."""
    if found:
        return stage.name, "cached", f"{what} [{stage.key}]"
    return stage.name, "make", f"{what} [{stage.key}]: {why_new(stage.inputs, store.earlier(stage.name))}"


def plain(value: object) -> object:
    """Return a value as JSON-like data."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True, by_alias=True)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _is_input(metadata: Mapping[str, object]) -> bool:
    return metadata.get("input", True) is True
