"""Where the guest of a bake is, what it said, and why it failed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from vmimage.stages.bake.layers import Layer, Layers
from vmimage.stages.bake.machine import OUTPUT, OVERLAY, frozen
from vmimage.util.console import Step
from vmimage.util.errors import BuildError
from vmimage.util.run import tail
from vmimage.vm.machine import SERIAL, console_end
from vmimage.vm.serial import MOST_BYTES, was_cut

_STEP_LINE = re.compile(r"vmimage-step: (start|done|layer) (\S+)")


class Position:
    """Where the guest is, read from Packer's output.

    Attributes:
        current: The script that runs, if any.
        output: What it has said.
        file: The file that the machine writes to.
    """

    def __init__(self, step: Step, folder: Path, layers: Layers, wanted: Mapping[str, Layer]) -> None:
        self.current = ""
        self.output: list[str] = []
        self.file = folder / OUTPUT / OVERLAY
        self._folder = folder
        self._layers = layers
        self._wanted = wanted
        self._failed = False
        self._step = step

    @property
    def kept(self) -> Path:
        """The same file, under a name that Packer does not remove when a step fails."""
        return self._folder / "first.qcow2" if self.file.name == OVERLAY else self.file

    def read(self, line: str) -> None:
        match = _STEP_LINE.search(line)
        if match and match[1] == "start":
            if self.kept != self.file:
                os.link(self.file, self.kept)
            self.current, self.output = match[2], []
            self._step.now(match[2].removesuffix(".sh"))
        elif match and match[1] == "layer":
            require_written(self._folder / SERIAL)
            self._layers.add(self._wanted[match[2]], self.file)
            self.file = frozen(self._folder, match[2])
        elif match:
            self.current = ""
        elif "Provisioning step had errors" in line:
            self._failed = True
        elif self.current and not self._failed:
            self.output.append(line.strip().removeprefix("qemu.image: ").removeprefix("==> qemu.image: "))


def failure(image: str, position: Position, output: str, serial: Path) -> BuildError:
    if position.current:
        said = "\n".join(position.output)
        return BuildError(
            f"provision/{position.current} failed:{tail(said)}",
            hint=f"repeat it: invoke build-image {image}    (begins with this step; --keep-failed keeps its machine)",
        )
    return BuildError(f"Packer failed:{tail(output)}\n  the guest's console ends with:{console_end(serial)}")


def require_written(serial: Path) -> None:
    """Check that the guest lost no write: steps do not notice, and this host's disk may have room again.

    Args:
        serial: What the guest's kernel said.

    Raises:
        BuildError: It did.
    """
    if not serial.exists():
        return
    if was_cut(serial):
        raise BuildError("the guest said so much on its console that a lost write may not be seen any more")
    with serial.open("rb") as file:
        said = file.read(MOST_BYTES).decode(errors="replace")
    lost = re.search(r"I/O error, dev vd.{0,200}", said)
    if lost:
        raise BuildError(
            f"the guest could not write to its disk: {lost[0].strip()}",
            hint="is there room for the cache, and is its disk sound? then run the command again",
        )
