from __future__ import annotations

from typing import get_args

import pytest

from vmimage.spec.model import FormatName
from vmimage.stages.verify.matrix import MACHINES, boots
from vmimage.vm.profiles import HYPERVISORS, PROFILES


def names(kinds: list[FormatName], *, full: bool = False) -> list[str]:
    return [boot.name for boot in boots(kinds, full=full)]


def test_every_file_is_booted_and_both_firmwares() -> None:
    assert names(["qcow2"]) == ["qcow2-virtio-uefi", "qcow2-virtio-bios"]
    assert names(["qcow2", "ova"]) == ["qcow2-virtio-uefi", "ova-virtualbox-bios"]
    assert names(["ova"]) == ["ova-virtualbox-bios", "ova-virtualbox-uefi"]
    assert names(["vhdx"]) == ["vhdx-hyperv-bios"], "this one has no machine with the other firmware"


def test_full_matrix_has_every_machine_of_every_format() -> None:
    assert len(names(["qcow2", "ova"], full=True)) == len(MACHINES["qcow2"]) + len(MACHINES["ova"])


@pytest.mark.parametrize("kind", get_args(FormatName))
def test_every_format_has_machines_that_can_boot_it(kind: FormatName) -> None:
    assert MACHINES[kind]
    for profile, firmware in MACHINES[kind]:
        assert firmware in PROFILES[profile].firmwares


def test_every_profile_is_used() -> None:
    assert {profile for machines in MACHINES.values() for profile, _ in machines} == set(PROFILES)
    assert set(HYPERVISORS.values()) <= set(PROFILES)
