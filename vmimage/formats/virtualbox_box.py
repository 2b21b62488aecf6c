"""A Vagrant box for VirtualBox: an OVA with metadata and a Vagrantfile in it."""

from __future__ import annotations

from pathlib import Path

from vmimage.formats import ova
from vmimage.formats.archive import Member, opened_archive
from vmimage.formats.box import METADATA, VAGRANTFILE, check_metadata, metadata, vagrantfile
from vmimage.formats.format import Appliance, Format, Opened, checked
from vmimage.formats.ova import check_appliance, write_ova
from vmimage.formats.vmdk import DeflateOptions

VIRTUALBOX_STEM = "box"
"""Vagrant looks for `box.ovf`."""


def write_virtualbox_box(
    disk: Path, to: Path, appliance: Appliance, template: Path, vagrant: bytes, *, level: int
) -> None:
    """Write a raw disk as a box of the virtualbox provider: an OVA with two more members.

    Raises:
        OSError: The disk cannot be read, or the box not written; `to` is then incomplete.
    """
    others = {METADATA: metadata("virtualbox"), VAGRANTFILE: vagrant}
    write_ova(disk, to, appliance, template, level=level, stem=VIRTUALBOX_STEM, others=others)


def check_virtualbox_box(path: Path, work: Path | None = None) -> Member:
    """Check what Vagrant and VirtualBox rely on; returns the disk.

    Args:
        work: A folder into which the disk is copied while it is hashed.

    Raises:
        ValueError: With the reason why the box is refused.
    """
    with opened_archive(path) as archive:
        check_metadata(archive, "virtualbox")
        return check_appliance(archive, work, others=(METADATA, VAGRANTFILE), stem=VIRTUALBOX_STEM)


def _write(disk: Path, to: Path, options: DeflateOptions, appliance: Appliance) -> None:
    text = vagrantfile(appliance, "virtualbox")
    write_virtualbox_box(disk, to, appliance, ova.TEMPLATE, text, level=options.level)


def _open(path: Path, work: Path) -> Opened:
    return checked(Opened(path=work / check_virtualbox_box(path, work).name, format="vmdk"))


VIRTUALBOX_BOX = Format(
    name="virtualbox.box",
    summary="Vagrant with VirtualBox",
    options=DeflateOptions,
    machines=(("virtualbox", "bios"),),
    machines_told="VirtualBox: SATA + e1000 (BIOS)",
    taken_by="its OVF imported by VirtualBox 7.2; `vagrant up` not tried",
    write=_write,
    open=_open,
    compressor="deflate",
)
