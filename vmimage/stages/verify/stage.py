"""Verifying a file by itself, and what a verdict depends on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmimage import host
from vmimage.cache.result import AFTER, Result
from vmimage.plan import Plan, digests
from vmimage.spec.model import MachineSpec
from vmimage.stages.bake.stage import BakeStage
from vmimage.stages.export import ExportStage
from vmimage.stages.stage import StoredStage
from vmimage.stages.verify.checks import DISK_TESTS, PACE, check_files, known_seconds, note_seconds
from vmimage.stages.verify.matrix import Boot, boots
from vmimage.stages.verify.subject import VERDICT, File, Subject
from vmimage.util.console import Step
from vmimage.util.files import sha256_file
from vmimage.vm.profiles import PROFILES


@dataclass(frozen=True, kw_only=True)
class VerifyStage(StoredStage):
    """A verdict on the exported files. It depends on their bytes, not on how they came about.

    Attributes:
        facts: What the image should say of itself.
        machine: What the image asks for.
        boots: In which machines the files are booted.
        hardware: Machine profile -> its devices, for these machines.
        files: Digests of the checks.
    """

    name = "verify"
    edition = 3

    facts: Mapping[str, object]
    machine: MachineSpec
    boots: tuple[Boot, ...]
    hardware: Mapping[str, Mapping[str, object]]
    files: Mapping[str, str]

    @property
    def export(self) -> ExportStage:
        """The stage that made the files."""
        assert isinstance(self.after, ExportStage)  # noqa: S101 - `verify_stage` builds nothing else
        return self.after

    @property
    def build_key(self) -> str:
        """The public key that the bake logged in with: it must not be in the files."""
        bake = self.export.after
        assert isinstance(bake, BakeStage)  # noqa: S101 - `export_stage` builds nothing else
        return str(bake.result.meta["build_key"])

    @property
    def why(self) -> str:
        return f"boots {', '.join(boot.name for boot in self.boots)}"

    @property
    def made_from(self) -> StoredStage | None:
        """Nothing in the cache: a verdict on the same bytes holds, whatever they were made from."""
        return None

    @property
    def inputs(self) -> Mapping[str, object]:
        """All that it depends on; known when the files are there."""
        firmware = host.find_uefi()
        own = {key: value for key, value in super().inputs.items() if key != AFTER}
        return own | {
            "sha256": {kind: facts["sha256"] for kind, facts in self.export.exported.items()},
            "build_key": self.build_key,
            "firmware": {str(path): sha256_file(path) for path in (firmware.code, firmware.variables)},
            "tools": host.require(("qemu-system-x86_64",)),
        }

    def find(self) -> Result | None:
        return super().find() if self.export.is_there() else None

    def make(self, work: Path, step: Step) -> Mapping[str, object]:
        from vmimage.stages.verify.verdict import verify

        files = self.export.exported.items()
        folder = self.export.result.path
        context = self.context
        pace = context.store.root / PACE
        subject = Subject(
            files=[File(kind=kind, path=folder / str(facts["name"])) for kind, facts in files],
            boots=self.boots,
            facts=self.facts,
            memory=self.machine.memory,
            cpus=self.machine.cpus,
            build_key=self.build_key,
            seconds=known_seconds(pace),
        )
        verdict = verify(subject, work, context.accelerator(), step, evidence=context.evidence, keep=context.keep)
        note_seconds(pace, work)
        return verdict

    @property
    def verdict(self) -> Mapping[str, Any]:
        """The verdict that is there."""
        return dict(json.loads((self.result.path / VERDICT).read_text()))

    def planned(self) -> Iterator[tuple[str, str, str]]:
        if self.export.is_there():
            yield from super().planned()
        else:
            yield self.name, "make", f"{self.why}; unless the same bytes passed before"


def verify_stage(plan: Plan, export: ExportStage, *, full_matrix: bool) -> VerifyStage:
    """Return the verdict on the files of an image.

    Args:
        full_matrix: Boot the files in every machine that their formats are for.
    """
    bake = export.after
    assert isinstance(bake, BakeStage)  # noqa: S101 - `export_stage` builds nothing else
    machines = boots(plan.image.formats.names, full=full_matrix)
    checks = ["conftest.py", *DISK_TESTS, *check_files(bake.release_facts, plan.project / "tests" / "image")]
    return VerifyStage(
        context=export.context,
        after=export,
        facts=bake.release_facts,
        machine=plan.image.machine,
        boots=machines,
        hardware={boot.profile: vars(PROFILES[boot.profile]) for boot in machines},
        files=digests(plan.project, [Path("tests/image") / name for name in checks]),
    )
