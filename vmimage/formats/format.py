"""The contract of a format: all that the rest of the tool has to know of it stands in one file, as one `Format`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vmimage.formats.contained import require_self_contained
from vmimage.util.confine import Limits, run_confined
from vmimage.util.errors import BuildError, VerifyError
from vmimage.util.firmware import FirmwareName
from vmimage.util.model import Model

MOST_DISK_BYTES = 1 << 40
"""Of a disk, holes included."""
MOST_DATA_BYTES = 128 << 30
"""Of it that are no holes, and would be written to this host."""
MOST_DATA_TOLD = (
    f"more than {MOST_DATA_BYTES >> 30} GiB; make an image with less in it, and let machines fetch the rest"
)
CONVERT = Limits(seconds=4 * 3600.0)


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
    try:
        done = run_confined(["qemu-img", "check", disk.alone], check=False)
    except BuildError as error:
        raise ValueError(f"its disk cannot be checked: {error.message}") from error
    if done.returncode:
        raise ValueError(f"its disk is damaged: {done.output.strip()}")
    require_size(virtual_size(disk))
    return disk


def require_size(size: int) -> None:
    """Check that a disk is no larger than any that is made here.

    Raises:
        ValueError: It is.
    """
    if size > MOST_DISK_BYTES:
        raise ValueError(
            f"its disk has {size} bytes, more than {MOST_DISK_BYTES >> 30} GiB; an image can be small, "
            "since its root file system grows to the disk that a machine is given"
        )


def virtual_size(disk: Opened) -> int:
    """Return the size of a disk in bytes, as QEMU reads it.

    Raises:
        ValueError: It cannot be read.
    """
    return _told(["qemu-img", "info", "--output=json", disk.alone], "virtual-size")


def _told(argv: Sequence[str], what: str) -> int:
    """Return a number that qemu-img tells."""
    try:
        return int(json.loads(run_confined(argv).output)[what])
    except (BuildError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"its disk cannot be read: {error}") from error


def write_raw(disk: Opened, to: Path) -> None:
    """Write what is in a disk as a raw file, with holes for what is not allocated.

    Raises:
        VerifyError: It cannot be read, or holds more than any disk that is made here.
    """
    try:
        # Of what is allocated; many clusters of a qcow2 may be the same one.
        held = _told(["qemu-img", "measure", "--output=json", "-O", "qcow2", disk.alone], "required")
    except ValueError as error:
        raise VerifyError(f"{disk.path.name} is refused: {error}") from error
    if held > MOST_DATA_BYTES:
        raise VerifyError(f"{disk.path.name} is refused: {held} bytes in it are no zeros, {MOST_DATA_TOLD}")
    convert: list[str | Path] = ["qemu-img", "convert", "-O", "raw", disk.alone, to]
    run_confined(convert, writable=[to.parent], limits=CONVERT, error=VerifyError)
