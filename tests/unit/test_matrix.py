from __future__ import annotations

import pytest

from vmimage.formats.all import BY_NAME, FORMATS
from vmimage.stages.verify.matrix import boots
from vmimage.vm.profiles import HYPERVISORS, PROFILES


def names(kinds: list[str], *, full: bool = False) -> list[str]:
    return [boot.name for boot in boots(kinds, full=full)]


def test_every_file_is_booted_and_both_firmwares() -> None:
    assert names(["qcow2"]) == ["qcow2-virtio-uefi", "qcow2-virtio-bios"]
    assert names(["qcow2", "ova"]) == ["qcow2-virtio-uefi", "ova-virtualbox-bios"]
    assert names(["ova"]) == ["ova-virtualbox-bios", "ova-virtualbox-uefi"]
    assert names(["vhdx"]) == ["vhdx-hyperv-bios", "vhdx-hyperv-bios-again"], "two clones, if by one machine"


def test_full_matrix_has_every_machine_of_every_format() -> None:
    assert len(names(["qcow2", "ova"], full=True)) == len(BY_NAME["qcow2"].machines) + len(BY_NAME["ova"].machines)


@pytest.mark.parametrize("kind", [each.name for each in FORMATS])
def test_every_format_has_machines_that_can_boot_it(kind: str) -> None:
    assert BY_NAME[kind].machines
    for profile, firmware in BY_NAME[kind].machines:
        assert firmware in PROFILES[profile].firmwares


def test_every_profile_is_used() -> None:
    assert {profile for each in FORMATS for profile, _ in each.machines} == set(PROFILES)
    assert set(HYPERVISORS.values()) <= set(PROFILES)
