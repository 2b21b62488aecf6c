from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.test_ova import APPLIANCE, TEMPLATE, Members, packed
from vmimage import PROJECT
from vmimage.formats.box import metadata, vagrantfile
from vmimage.formats.libvirt_box import check_libvirt_box, write_libvirt_box
from vmimage.formats.virtualbox_box import check_virtualbox_box, write_virtualbox_box

VAGRANT = PROJECT / "templates" / "Vagrantfile.j2"
Check = Callable[[Path], object]


@pytest.fixture(params=["libvirt", "virtualbox"])
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def good(provider: str, tmp_path: Path) -> Members:
    """The members of a box that is accepted."""
    disk, box = tmp_path / "disk.raw", tmp_path / "good.box"
    disk.write_bytes(b"boot" * 1000 + bytes((64 << 20) - 4000))
    text = vagrantfile(APPLIANCE, provider)
    if provider == "libvirt":
        write_libvirt_box(disk, box, text, "zstd")
        check_libvirt_box(box)
    else:
        write_virtualbox_box(disk, box, APPLIANCE, TEMPLATE, text, level=1)
        check_virtualbox_box(box)
    with tarfile.open(box) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]


def test_members(provider: str, good: Members) -> None:
    names = [name for name, _ in good]
    if provider == "libvirt":
        assert names == ["metadata.json", "Vagrantfile", "box.img"]
    else:
        assert names == ["box.ovf", "box.vmdk", "box.mf", "metadata.json", "Vagrantfile"]
    facts = json.loads(dict(good)["metadata.json"])
    size = {"format": "qcow2", "virtual_size": 1} if provider == "libvirt" else {}
    assert facts == {"provider": provider, "architecture": "amd64", **size}


def test_vagrantfile_gives_a_key_made_by_the_user_and_forwards_ports(provider: str, good: Members) -> None:
    text = dict(good)["Vagrantfile"].decode()
    assert 'guest: 80, host: 8080, host_ip: "127.0.0.1"' in text
    assert 'id: "ssh"' not in text, "Vagrant forwards that itself"
    assert "insecure" not in text
    assert ("cloud_init" in text) == (provider == "virtualbox")
    assert ("sysinfo" in text) == (provider == "libvirt")


def without(name: str) -> Callable[[Members], Members]:
    return lambda members: [member for member in members if member[0] != name]


def with_member(name: str, data: bytes) -> Callable[[Members], Members]:
    return lambda members: [(key, data if key == name else old) for key, old in members]


WRONG: dict[str, tuple[Callable[[Members], Members], str]] = {
    "no metadata": (without("metadata.json"), "metadata.json is missing"),
    "no Vagrantfile": (without("Vagrantfile"), "Vagrantfile is missing"),
    "other provider": (with_member("metadata.json", metadata("hyperv")), "does not say that the provider is"),
    "no JSON": (with_member("metadata.json", b"{"), "metadata.json is not JSON"),
    "JSON that is very deep": (with_member("metadata.json", b"[" * 200_000), "metadata.json is not JSON"),
    "no UTF-8": (with_member("metadata.json", b'{"provider": "\xff"}'), "metadata.json is not JSON"),
    "much JSON": (with_member("metadata.json", b" " * (1 << 20) + b"{}"), "too many for a text"),
    "two Vagrantfiles": (lambda members: [*members, ("Vagrantfile", b"x")], "Vagrantfile stands in it twice"),
    "a list": (with_member("metadata.json", b"[]"), "does not say that the provider is"),
    "one more member": (lambda members: [*members, ("extra", b"x")], r"extra"),
    "path": (lambda members: [(f"./{name}", data) for name, data in members], "is not a plain file at the top"),
}


@pytest.mark.parametrize("case", WRONG)
def test_broken_box_is_refused_with_the_reason(case: str, provider: str, good: Members, tmp_path: Path) -> None:
    change, why = WRONG[case]
    check: Check = check_libvirt_box if provider == "libvirt" else check_virtualbox_box
    with pytest.raises(ValueError, match=re.escape(why)):
        check(packed(tmp_path / "bad.box", change(good)))


@pytest.mark.parametrize("provider", ["libvirt"], indirect=True)
def test_image_that_is_not_as_described_is_refused(good: Members, tmp_path: Path) -> None:
    larger = with_member("metadata.json", metadata("libvirt", format="qcow2", virtual_size=2))
    with pytest.raises(ValueError, match=r"does not describe box\.img, a qcow2 of 1 GiB"):
        check_libvirt_box(packed(tmp_path / "bad.box", larger(good)))
    with pytest.raises(ValueError, match="it is no qcow2"):
        check_libvirt_box(packed(tmp_path / "bad.box", with_member("box.img", b"x" * 600)(good)))
    for size in (0, 3, 4, 31):
        cut = with_member("box.img", dict(good)["box.img"][:size])
        with pytest.raises(ValueError, match="it is no qcow2"):
            check_libvirt_box(packed(tmp_path / "bad.box", cut(good)))


@pytest.mark.parametrize("provider", ["virtualbox"], indirect=True)
def test_descriptor_has_the_name_that_vagrant_looks_for(good: Members, tmp_path: Path) -> None:
    other = [(name.replace("box.", "other."), data.replace(b"box.", b"other.")) for name, data in good]
    with pytest.raises(ValueError, match=r"its first member is not the box\.ovf"):
        check_virtualbox_box(packed(tmp_path / "bad.box", other))
