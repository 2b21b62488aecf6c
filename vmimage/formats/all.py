"""All formats. To add one: a file beside this one, and its line here."""

from __future__ import annotations

from pathlib import Path

from vmimage.formats.format import Format, Opened
from vmimage.formats.libvirt_box import LIBVIRT_BOX
from vmimage.formats.ova import OVA
from vmimage.formats.qcow2 import QCOW2
from vmimage.formats.raw_zst import RAW_ZST
from vmimage.formats.vhd import VHD
from vmimage.formats.vhdx import VHDX
from vmimage.formats.virtualbox_box import VIRTUALBOX_BOX
from vmimage.formats.vmdk import VMDK

FORMATS: tuple[Format, ...] = (QCOW2, OVA, VMDK, RAW_ZST, VHDX, VHD, LIBVIRT_BOX, VIRTUALBOX_BOX)
"""In the order in which they are told and made; machines are started from the first that an image has."""
BY_NAME = {each.name: each for each in FORMATS}


def kind_of(path: Path) -> str:
    """Return the name of the format that a file's name says it has; nothing when it says none."""
    suiting = [name for name in BY_NAME if path.name.endswith(f".{name}")]
    return max(suiting, key=len, default="")


def open_disk(kind: str, path: Path, work: Path) -> Opened:
    """Check an exported file, and unpack its disk into `work` where a hypervisor's importer would do so, too.

    Raises:
        ValueError: It is refused, with the reason.
        OSError: It cannot be read, or what comes out not be written.
    """
    return BY_NAME[kind].open(path, work)
