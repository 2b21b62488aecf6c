"""The contract of a format: all that the rest of the tool has to know of it stands in one file, as one `Format`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vmimage.formats.contained import require_self_contained
from vmimage.util.errors import VerifyError
from vmimage.util.firmware import FirmwareName
from vmimage.util.model import Model
from vmimage.util.run import run


class NoOptions(Model):
    """Of a format that has none yet."""


@dataclass(frozen=True, kw_only=True)
class Appliance:
    """What descriptors say of the machine.

    Attributes:
        version: The part of the release's version that is known before the files are made.
        forwards: (name, port on the host's loopback, port of the guest), set up by importers that can.
    """

    name: str
    version: str
    vendor: str
    summary: str
    cpus: int
    memory_mib: int
    forwards: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A disk, and its format in QEMU's words."""

    path: Path
    format: str

    @property
    def alone(self) -> str:
        """How QEMU's programs are told to open this file, as this format, and nothing that it names."""
        backing = {"backing": None} if self.format in ("qcow2", "vmdk") else {}
        file = {"driver": "file", "filename": str(self.path.absolute())}
        return f"json:{json.dumps({'driver': self.format, **backing, 'file': file})}"


@dataclass(frozen=True, kw_only=True)
class Format:
    """A form in which the sealed disk is handed out.

    Attributes:
        name: Also the end of its files' names.
        summary: What it is for, in images.yaml's schema and in the README.
        options: What images.yaml may say behind it.
        machines: Profile and firmware of the machines that it is for; it is booted in the first on every build.
        machines_told: The same in words, for the README.
        taken_by: How it was tried with the real program, for the README.
        write: Takes a raw disk, the file to write, the options and the appliance.
        open: Takes a file and a folder to unpack into; checks what importers rely on and gives the disk.
        compressor: What most of its making is, for the floor of the benchmark.
        usage: A line on how to use it, where the release's README has no section on it; `{file}`, `{image}` and
            `{memory}` are filled in.
    """

    name: str
    summary: str
    options: type[Model]
    machines: tuple[tuple[str, FirmwareName], ...]
    machines_told: str
    taken_by: str
    write: Callable[[Path, Path, Any, Appliance], None]
    open: Callable[[Path, Path], Opened]
    compressor: Literal["zstd", "deflate", "none"]
    usage: str = ""

    @property
    def field(self) -> str:
        """The name as an identifier of Python."""
        return self.name.replace(".", "_")

    def rows(self) -> tuple[str, str]:
        """Return its rows in the README's two tables of formats."""
        booted = "each, on every build or with `--matrix full`" if self.name == "qcow2" else "the same"
        return (
            f"| `{self.name}` | {self.summary} | {self.machines_told} |",
            f"| `{self.name}` | {booted} | {self.taken_by} |",
        )


def checked(disk: Opened) -> Opened:
    """Look whether a disk is sound, and names no other file.

    Raises:
        ValueError: It is not, or does.
        OSError: It cannot be read.
    """
    require_self_contained(disk.path, disk.format)
    done = run(["qemu-img", "check", disk.alone], check=False)
    if done.returncode:
        raise ValueError(f"its disk is damaged: {done.output.strip()}")
    return disk


def write_raw(disk: Opened, to: Path) -> None:
    """Write what is in a disk as a raw file, with holes for what is not allocated.

    Raises:
        VerifyError: It cannot be read.
    """
    run(["qemu-img", "convert", "-O", "raw", disk.alone, to], error=VerifyError)
