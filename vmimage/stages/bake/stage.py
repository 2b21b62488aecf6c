"""Bake: base + files + provision/ -> one sealed disk.

Packer boots the base disk, or the layer behind the last step that was done before (layers.py), by its kernel, runs the
remaining provision steps over ssh and shuts the guest down. All writes go to files on top.
The login key reaches the guest as a systemd credential and lives in a tmpfs there: it is never on the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmimage.plan import Plan, digests, guest_values, machine_files, step_files
from vmimage.spec.model import SEAL_STEP
from vmimage.stages.bake.layers import EDITION, Layer, Layers, layers_of
from vmimage.stages.base import BaseStage
from vmimage.stages.stage import StoredStage, planned
from vmimage.util.console import Step

DISK = "disk.raw"


@dataclass(frozen=True, kw_only=True)
class BakeStage(StoredStage):
    """The sealed disk of an image.

    Attributes:
        after: The layer of the last step, or the base where there is no step.
        disk: Bytes that it has in the end.
        facts: What the image says of itself.
        files: Digests of the project's files that the machine and the seal are made from.
    """

    name = "bake"
    edition = EDITION

    image: str
    disk: int
    facts: Mapping[str, object]
    files: Mapping[str, str]

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of its steps, the lowest first."""
        found = list[Layer]()
        below = self.after
        while isinstance(below, Layer):
            found.insert(0, below)
            below = below.after
        return tuple(found)

    @property
    def made_from(self) -> StoredStage | None:
        """The base: its layers are made, or found, while it is made itself."""
        base = self.layers[0].after if self.layers else self.after
        assert isinstance(base, BaseStage)  # noqa: S101 - `bake_stage` builds nothing else
        return base

    @property
    def release_facts(self) -> Mapping[str, object]:
        """What the image says of itself in /etc/vmimage/release.json."""
        return {"image": self.image, **self.facts, "build": self.key}

    @property
    def why(self) -> str:
        return f"{len(self.layers)} steps: {', '.join(layer.step_name for layer in self.layers)}"

    def make(self, work: Path, step: Step) -> Mapping[str, object]:
        from vmimage.stages.bake.bake import make_bake

        context = self.context
        assert self.made_from  # noqa: S101 - the base
        base = self.made_from.result
        with contextlib.closing(Layers(self.layers, base, context.store, step, start=context.start_step)) as layers:
            return make_bake(self, base.path, layers, work, context.accelerator(), step, keep=context.keep)

    def planned(self) -> Iterator[tuple[str, str, str]]:
        store, there = self.context.store, self.find()
        assert self.made_from  # noqa: S101 - the base
        below = self.made_from.find()
        for layer in self.layers:
            below = store.find(layer.name, layer.inputs, below=below) if below else None
            name, state, why = planned(layer, layer.step_name, below, store)
            # A layer that is not there is only made for a bake that is not there.
            yield name, "unused" if there and state == "make" else state, why
        yield planned(self, "seal", there, store)


def bake_stage(plan: Plan, base: BaseStage) -> BakeStage:
    """Return the sealed disk of an image, made from its base."""
    layers = layers_of(plan, base)
    files = [*machine_files(plan.project), *step_files(plan.project, SEAL_STEP)]
    return BakeStage(
        context=base.context,
        after=layers[-1] if layers else base,
        image=plan.name,
        disk=plan.disk_bytes,
        facts={
            "summary": plan.image.summary,
            "components": list(plan.image.components),
            "versions": plan.versions,
        },
        files=digests(plan.project, files, guest_values(plan.name)),
    )
