"""Layers: the disk as it is after each provision step, kept so that a later bake begins behind the steps it shares.

A layer is a qcow2 on the layer beneath, the lowest on the base disk. The running machine is never stopped for one:
its disk is frozen between two steps (snapshot.py), so a layer after every step costs no boot, and there is nothing to
weigh. A step that fails or is killed leaves the layers before it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vmimage.cache.result import LAYER, Result, making
from vmimage.cache.store import Store
from vmimage.plan import PinFacts, Plan, digests, guest_values, machine_files, step_files
from vmimage.stages.base import DISK as BASE_DISK
from vmimage.stages.base import BaseStage
from vmimage.stages.stage import Keyed
from vmimage.util.console import Step
from vmimage.util.files import disk_use
from vmimage.util.run import run

DISK = "disk.qcow2"
EDITION = 4
"""Of the machine of a bake, in which layers and the sealed disk are made."""


@dataclass(frozen=True, kw_only=True)
class Layer(Keyed):
    """The disk as it is after a provision step.

    It depends on what is beneath and on what the step itself reads, on nothing else of the image: images that begin
    with the same steps share layers.

    Attributes:
        script: In provision/.
        pins: Pin -> version and SHA-256 of each file that the step installs; of an archive, the members to it.
        files: Digests of the project's files that the step reads.
    """

    name = LAYER
    edition = EDITION

    script: str
    pins: Mapping[str, PinFacts]
    files: Mapping[str, str]
    tools: Mapping[str, str]

    @property
    def step_name(self) -> str:
        """The script without its suffix; also the name of its folder in provision/files/."""
        return self.script.removesuffix(".sh")


def layers_of(plan: Plan, base: BaseStage) -> tuple[Layer, ...]:
    """Return the layers of an image, the lowest first."""
    pinned = {file.name: file for file in plan.files}
    layers = list[Layer]()
    for component in plan.components:
        if component.step:
            files = [*machine_files(plan.project), *step_files(plan.project, component.step)]
            layers.append(
                Layer(
                    after=layers[-1] if layers else base,
                    script=component.step,
                    pins={pin: pinned[pin].facts for pin in component.pins},
                    files=digests(plan.project, files, guest_values(plan.name)),
                    tools={tool: plan.tools[tool] for tool in ("packer", "qemu-img")},
                )
            )
    return tuple(layers)


class Layers:
    """The layers of one bake: those that are there, and those that it adds."""

    def __init__(
        self, layers: Sequence[Layer], base: Result, store: Store, step: Step, *, start: int | None = None
    ) -> None:
        """
        Args:
            layers: Of the image, the lowest first.
            base: What they stand on.
            start: The first step to run even if its layer is there; the first without a layer when not given.
        """
        self._layers = layers
        self._base = base
        self.store = store
        self._step = step
        self._lock: IO[str] | None = None
        # Set when another process made a layer that we were about to add: what we have stands on other bytes.
        self._apart = False
        if start is not None and start < len(layers):
            store.remove(LAYER, layers[start].key, step=step)
        self._found = self._find()
        self.done = len(self._found)
        self._since = time.monotonic()

    def _find(self) -> list[Result]:
        """Return the layers to begin from, the lowest first; the next one is then ours to make."""
        while True:
            found = list[Result]()
            for wanted in self._layers:
                layer = self.store.use(LAYER, wanted.key, below=self._beneath(found), check=True)
                if not layer:
                    break
                found.append(layer)
            if len(found) == len(self._layers):
                return found
            missing = self._layers[len(found)]
            self._lock = self.store.try_lock(making(LAYER, missing.key))
            if not self._lock:
                self._step.wait()
                with self.store.lock(making(LAYER, missing.key)):
                    continue
            if not self.store.use(LAYER, missing.key, below=self._beneath(found), check=True):
                # What lies there is damaged or stands on other bytes, and what stands on it is worth nothing.
                self.store.remove(LAYER, missing.key, step=self._step)
                return found
            self._lock.close()

    def _beneath(self, layers: Sequence[Result]) -> Result:
        """Return what the next layer stands on."""
        return layers[-1] if layers else self._base

    @property
    def top(self) -> tuple[Path, str]:
        """The disk to begin from, and its format."""
        return (self._found[-1].path / DISK, "qcow2") if self._found else (self._base.path / BASE_DISK, "raw")

    def add(self, layer: Layer, file: Path) -> None:
        """Keep a copy of a frozen file as a layer."""
        index = self._layers.index(layer)
        # Before this one is seen: nobody else is to begin the next one.
        following = self._layers[index + 1 : index + 2]
        lock = self.store.try_lock(making(LAYER, following[0].key)) if following else None
        if self._apart or self.store.result(LAYER, layer.key):
            self._apart = True
        else:
            self._found.append(self._added(layer, file))
        self.close()
        self._lock = lock
        self._since = time.monotonic()

    def _added(self, layer: Layer, file: Path) -> Result:
        beneath, disk_format = self.top
        with self.store.workspace(LAYER) as work:
            copy = work / DISK
            shutil.copyfile(file, copy)
            # Relative: the cache may be moved.
            below = os.path.relpath(beneath, self.store.root / LAYER / layer.key)
            run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", disk_format, "-b", below, copy])
            seconds = round(time.monotonic() - self._since, 1)
            meta = {"seconds": seconds, "peak_bytes": disk_use(work)}
            return self.store.add(LAYER, layer.inputs, work, meta, below=self._beneath(self._found))

    @property
    def kept_all(self) -> bool:
        """Whether every step that is done has its layer here, with the bytes that this bake made."""
        return not self._apart

    def close(self) -> None:
        """Let others make the layer that we did not."""
        if self._lock:
            self._lock.close()
            self._lock = None
