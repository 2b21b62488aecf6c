"""Vagrant boxes: a disk with metadata.json and a Vagrantfile in one tar archive.

No key is in the disk, not even Vagrant's published one: the Vagrantfile makes a key pair on the user's machine and
hands its public half to each machine at start. The same disk always gives the same bytes.

Source: https://developer.hashicorp.com/vagrant/docs/boxes/format and, for libvirt,
https://vagrant-libvirt.github.io/vagrant-libvirt/boxes.html
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from vmimage.formats.archive import BLOCK, append, finish, member, opened_archive, read_head, read_text
from vmimage.formats.ova import Appliance, Contents, check_ova, write_ova
from vmimage.formats.qcow2 import virtual_size, write_qcow2
from vmimage.util.render import render

METADATA = "metadata.json"
VAGRANTFILE = "Vagrantfile"
IMAGE = "box.img"
VIRTUALBOX_STEM = "box"
"""Vagrant looks for `box.ovf`."""


def vagrantfile(template: Path, appliance: Appliance, provider: str) -> bytes:
    """Return the Vagrantfile of a box."""
    return render(template, {"appliance": appliance, "provider": provider}).encode()


def metadata(provider: str, **more: object) -> bytes:
    """Return metadata.json."""
    return (json.dumps({"provider": provider, "architecture": "amd64", **more}) + "\n").encode()


def write_libvirt_box(disk: Path, to: Path, vagrant: bytes, compression: str) -> None:
    """Write a raw disk as a box of the libvirt provider.

    Args:
        vagrant: Its Vagrantfile.
        compression: Of the qcow2 inside: zstd or zlib.

    Raises:
        OSError, BuildError: It could not be written; `to` is then incomplete.
    """
    image = to.with_name(f"{to.name}.img")
    write_qcow2(disk, image, compression=compression)
    with to.open("wb") as archive, image.open("rb") as source:
        append(archive, METADATA, metadata("libvirt", format="qcow2", virtual_size=gibibytes(disk.stat().st_size)))
        append(archive, VAGRANTFILE, vagrant)
        size = image.stat().st_size
        archive.write(member(IMAGE, size))
        shutil.copyfileobj(source, archive, 1 << 20)
        archive.write(bytes(-size % BLOCK))
        finish(archive)
    image.unlink()


def write_virtualbox_box(
    disk: Path, to: Path, appliance: Appliance, template: Path, vagrant: bytes, *, level: int
) -> None:
    """Write a raw disk as a box of the virtualbox provider: an OVA with two more members.

    Raises:
        OSError: The disk cannot be read, or the box not written; `to` is then incomplete.
    """
    others = {METADATA: metadata("virtualbox"), VAGRANTFILE: vagrant}
    write_ova(disk, to, appliance, template, level=level, stem=VIRTUALBOX_STEM, others=others)


def check_virtualbox_box(path: Path) -> Contents:
    """Check what Vagrant and VirtualBox rely on.

    Raises:
        ValueError: With the reason why the box is refused.
    """
    _check_metadata(path, "virtualbox")
    return check_ova(path, others=(METADATA, VAGRANTFILE))


def check_libvirt_box(path: Path) -> Contents:
    """Check what Vagrant and its libvirt plugin rely on.

    Raises:
        ValueError: With the reason why the box is refused.
    """
    facts = _check_metadata(path, "libvirt")
    with opened_archive(path) as (archive, members):
        if set(members) != {METADATA, VAGRANTFILE, IMAGE}:
            raise ValueError(f"it holds {', '.join(members)} instead of {METADATA}, {VAGRANTFILE} and {IMAGE}")
        image = members[IMAGE]
        size = virtual_size(read_head(archive, image))
    if facts.get("format") != "qcow2" or facts.get("virtual_size") != gibibytes(size):
        raise ValueError(f"{METADATA} does not describe {IMAGE}, a qcow2 of {gibibytes(size)} GiB")
    return Contents(disk_name=IMAGE, offset=image.offset_data, size=image.size)


def gibibytes(size: int) -> int:
    """Round up to the unit of `virtual_size`."""
    return -(-size >> 30)


def _check_metadata(path: Path, provider: str) -> Mapping[str, object]:
    with opened_archive(path) as (archive, members):
        for name in (METADATA, VAGRANTFILE):
            if name not in members:
                raise ValueError(f"{name} is missing")
        try:
            facts = json.loads(read_text(archive, members[METADATA]))
        except ValueError as error:
            raise ValueError(f"{METADATA} is not JSON: {error}") from error
    if not isinstance(facts, dict) or facts.get("provider") != provider:
        raise ValueError(f"{METADATA} does not say that the provider is {provider}")
    return facts
