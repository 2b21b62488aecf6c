"""`invoke run --disk FILE`: an overlay that keeps changes, and beside it, in FILE.base/, what it stands on.

    FILE                 a qcow2 of what the machine wrote; its backing file is FILE.base/disk
    FILE.base/disk       the disk of the release: a hard link where that can be, so no release that goes takes it along
    FILE.base/base.json  of which release it is, its SHA-256, and the machine that it asks for; written last

If the bytes below an overlay change, the overlay is a broken disk, and no program notices. So the bytes are compared
before each start. Their digest stands beside the overlay, because a qcow2 has no place that QEMU leaves alone. A new
overlay stays in FILE.base/ until it is complete, so an interruption leaves no half of FILE.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError

from vmimage.formats.contained import (
    CORRUPT,
    DIRTY,
    OTHER_COMPRESSION,
    QCOW2_HEADER,
    QCOW2_HEADER_3,
    QCOW2_MAGIC,
)
from vmimage.formats.format import Opened
from vmimage.spec.pins import Sha256
from vmimage.spec.texts import Name
from vmimage.stages.release.dist import Release
from vmimage.stages.release.manifest import MachineFacts, first_reason
from vmimage.stages.release.version import is_version
from vmimage.stages.verify.subject import File, opened_disk, require_recorded
from vmimage.util.errors import InputError, VerifyError
from vmimage.util.files import place, remove_tree, sha256_file, sync, sync_tree, written_beside
from vmimage.util.json_file import parse_json, read_json
from vmimage.util.locks import locked_alone
from vmimage.util.model import Model
from vmimage.util.run import run

DISK = "disk"
FACTS = "base.json"
UNPACKED = "unpacked"
NEW = "overlay.new"
NAMES = {DISK, FACTS, UNPACKED, NEW}
MOST_BYTES = 64 << 10
MOST_NAME = 1023
"""Bytes of the name of a backing file; of the format."""


class Base(Model):
    """What a kept disk stands on.

    Attributes:
        format: Of the disk, in QEMU's words.
    """

    image: Name
    version: str = Field(max_length=40)
    format: Literal["qcow2", "raw", "vmdk", "vhdx", "vpc"]
    sha256: Sha256
    machine: MachineFacts

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read base.json.

        Raises:
            ValueError: It is none, with the reason.
        """
        try:
            found = cls.model_validate(read_json(path, MOST_BYTES))
        except ValidationError as error:
            raise ValueError(first_reason(error)) from None
        if not is_version(found.version):
            raise ValueError("version: no version of a release")
        return found


def folder_of(disk: Path) -> Path:
    """Return where the base of a kept disk is."""
    return disk.with_name(f"{disk.name}.base")


def backing_name(disk: Path) -> str:
    """Return the name of the backing file in an overlay: relative, so that both can move together."""
    return f"{folder_of(disk).name}/{DISK}"


def find_base(disk: Path) -> Base | None:
    """Return what a kept disk stands on; None when it is to be made.

    Raises:
        InputError: Something of that name is there that `invoke run --disk` did not make.
    """
    if not disk.parent.is_dir():
        raise InputError(f"--disk {disk}: there is no folder {disk.parent}", hint="make it first")
    if not os.path.lexists(disk):
        _require_replaceable(folder_of(disk))
        return None
    if disk.is_symlink() or not disk.is_file():
        raise InputError(f"--disk {disk}: no file, but a link, a folder or a device", hint="name another file")
    try:
        base = Base.read(folder_of(disk) / FACTS)
    except ValueError as error:
        raise InputError(
            f"--disk {disk}: not a disk that `invoke run --disk` made with a base beside it\n"
            f"    {folder_of(disk) / FACTS}: {error}",
            hint=f"name a new file; or, if it was moved or renamed, move {folder_of(disk).name} beside it as well.\n"
            "A disk of an earlier version of vmimage has none: the README in the release's folder starts it with QEMU",
        ) from None
    found = backing_file(disk)
    if found != backing_name(disk):
        raise InputError(
            f"--disk {disk}: it stands on {found or 'nothing'}, not on {backing_name(disk)}",
            hint="if it was renamed together with its base, tell it so: "
            f"qemu-img rebase -u -F {base.format} -b {backing_name(disk)} {disk.name}",
        )
    return base


def _require_replaceable(folder: Path) -> None:
    """Check that a folder is not there, or is what is left of a disk of ours."""
    if not os.path.lexists(folder):
        return
    is_folder = folder.is_dir() and not folder.is_symlink()
    names = {path.name for path in folder.iterdir()} if is_folder else set()
    if not is_folder or not names <= NAMES:
        raise InputError(f"--disk: {folder} is there, and is not ours", hint="name another file")
    if FACTS in names and NEW not in names:
        raise InputError(
            f"--disk: {folder} is what a disk stands on that is not here any more",
            hint=f"put {folder.name.removesuffix('.base')} back beside it; or remove {folder}, if that disk is gone",
        )


def backing_file(disk: Path) -> str:
    """Return the backing file that a qcow2 names; empty for other files, and for a qcow2 with features we never use."""
    with disk.open("rb") as file:
        data = file.read(QCOW2_HEADER.size + QCOW2_HEADER_3.size)
        if len(data) < QCOW2_HEADER.size + QCOW2_HEADER_3.size or not data.startswith(QCOW2_MAGIC):
            return ""
        _, version, offset, size, *_ = QCOW2_HEADER.unpack_from(data)
        (features,) = struct.unpack_from(">Q", data, QCOW2_HEADER.size)
        ours = version == 3 and not features & ~(DIRTY | CORRUPT | OTHER_COMPRESSION)  # noqa: PLR2004 - of the format
        if not ours or not 0 < size <= MOST_NAME:
            return ""
        file.seek(offset)
        return os.fsdecode(file.read(size))


def require_base(disk: Path, base: Base) -> None:
    """Check that a kept disk stands on the bytes that it was made on.

    Raises:
        VerifyError: They are gone, or others.
    """
    path = folder_of(disk) / DISK
    hint = f"put the disk of {base.image} {base.version} with its SHA-256 there again: any other would break {disk}"
    if path.is_symlink() or not path.is_file():
        raise VerifyError(f"{disk} stands on {path}, which is gone\n    SHA-256 {base.sha256}", hint=hint)
    digest = sha256_file(path)
    if digest != base.sha256:
        raise VerifyError(
            f"{disk} stands on {path}, which is not what it was\n    was   {base.sha256}\n    found {digest}", hint=hint
        )
    # A second name of the disk, if the run that made it was killed at its last step.
    (folder_of(disk) / NEW).unlink(missing_ok=True)


def make_kept(release: Release, disk: Path) -> None:
    """Make a kept disk on a release, and its base beside it.

    Raises:
        InputError: Another process makes it, or has made it since this one looked.
        VerifyError: The release's file is not the one that was released, or is refused.
        OSError: It cannot be written.
    """
    # Beside it, and not in the cache: who has another cache makes it as well.
    with locked_alone(disk.with_name(f".{disk.name}.lock")) as alone:
        if not alone or os.path.lexists(disk):
            made = "made" if alone else "is making"
            raise InputError(f"--disk {disk}: another process {made} it", hint="run it again, or name another file")
        _make_alone(release, disk)


def _make_alone(release: Release, disk: Path) -> None:
    """Make a kept disk that no other process makes."""
    folder = folder_of(disk)
    _require_replaceable(folder)
    remove_tree(folder)
    folder.mkdir()
    try:
        opened = released_disk(release, folder / UNPACKED)
        place(opened.path, folder / DISK)
        remove_tree(folder / UNPACKED)
        facts = {
            "image": release.image,
            "version": release.version,
            "format": opened.format,
            "sha256": sha256_file(folder / DISK),
            "machine": release.machine.model_dump(),
        }
        _write_overlay(disk, opened.format, folder / NEW)
        with written_beside(folder / FACTS) as beside:
            beside.write_text(json.dumps(facts, indent=2) + "\n")
        sync_tree(folder)
        _give_name(folder / NEW, disk)
        sync(disk.parent)
    except BaseException:
        if not os.path.lexists(disk):
            remove_tree(folder)
        raise


def _give_name(new: Path, disk: Path) -> None:
    """Give an overlay its name; never over another file, as a rename would."""
    try:
        os.link(new, disk)
    except FileExistsError:
        raise InputError(f"--disk {disk}: another process made it", hint="run it again, or name another file") from None
    except OSError:
        # A file system without hard links.
        new.rename(disk)
    new.unlink(missing_ok=True)


def _write_overlay(disk: Path, disk_format: str, to: Path) -> None:
    """Write an empty overlay whose backing file is named as seen from `disk`."""
    base = Opened(path=folder_of(disk) / DISK, format=disk_format)
    said = parse_json(run(["qemu-img", "info", "--output=json", base.alone]).output.encode())
    size = said["virtual-size"] if isinstance(said, dict) else 0
    run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing_name(disk), "-F", disk_format, to, str(size)])


def released_disk(release: Release, work: Path) -> Opened:
    """Open the first file of a release, and unpack it into a new folder below `work` where it is packed.

    Raises:
        VerifyError: It is not the file that was released, or is refused.
        HostError: This host cannot read or unpack it.
    """
    kind = release.first_kind
    file = File(kind=kind, path=release.require_file(kind), recorded_sha256=release.manifest.files[kind].sha256)
    require_recorded(file)
    return opened_disk(file, work)
