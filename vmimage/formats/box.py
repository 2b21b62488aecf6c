"""Vagrant boxes: a disk with metadata.json and a Vagrantfile in one tar archive.

No key is in the disk, not even Vagrant's published one: the Vagrantfile makes a key pair on the user's machine and
hands its public half to each machine at start. The same disk always gives the same bytes.

Source: https://developer.hashicorp.com/vagrant/docs/boxes/format and, for libvirt,
https://vagrant-libvirt.github.io/vagrant-libvirt/boxes.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from vmimage import PROJECT
from vmimage.formats.archive import Archive
from vmimage.formats.format import Appliance
from vmimage.util.render import render

METADATA = "metadata.json"
VAGRANTFILE = "Vagrantfile"
TEMPLATE = PROJECT / "templates" / "Vagrantfile.j2"


def vagrantfile(appliance: Appliance, provider: str) -> bytes:
    """Return the Vagrantfile of a box."""
    return render(TEMPLATE, {"appliance": appliance, "provider": provider}).encode()


def metadata(provider: str, **more: object) -> bytes:
    """Return metadata.json."""
    return (json.dumps({"provider": provider, "architecture": "amd64", **more}) + "\n").encode()


def check_metadata(archive: Archive, provider: str) -> Mapping[str, object]:
    """Read and check metadata.json of a box.

    Raises:
        ValueError: With the reason why the box is refused.
    """
    for name in (METADATA, VAGRANTFILE):
        if name not in archive.members:
            raise ValueError(f"{name} is missing")
    try:
        facts = json.loads(archive.text(METADATA).decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{METADATA} is not JSON: {error}") from error
    if not isinstance(facts, dict) or facts.get("provider") != provider:
        raise ValueError(f"{METADATA} does not say that the provider is {provider}")
    return facts
