"""Which exported file is booted in which machine; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmimage.spec.model import FormatName
from vmimage.vm.profiles import FIRMWARES, FirmwareName

# The machines that each format is for; it is booted in the first of them on every build.
MACHINES: dict[FormatName, tuple[tuple[str, FirmwareName], ...]] = {
    "qcow2": (("virtio", "uefi"), ("virtio", "bios"), ("virtio-scsi", "bios"), ("q35-sata", "uefi")),
    "ova": (("virtualbox", "bios"), ("virtualbox", "uefi"), ("virtualbox-server", "bios"), ("virtualbox-ide", "bios"),
            ("vmware", "bios"), ("vmware", "uefi"), ("vmware-pvscsi", "bios"), ("vmware-lsi", "bios")),
    "vmdk": (("vmware", "bios"), ("vmware-nvme", "uefi"), ("vmware-pvscsi", "bios"), ("vmware-lsi", "bios")),
    "raw.zst": (("virtio-scsi", "bios"), ("vmware-nvme", "uefi"), ("q35-sata", "uefi")),
    "vhdx": (("hyperv", "bios"),),
    "libvirt.box": (("libvirt", "bios"),),
    "virtualbox.box": (("virtualbox", "bios"),),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Boot:
    """One file in one machine.

    Attributes:
        again: The same machine once more, so that there are two clones to compare.
    """

    kind: FormatName
    profile: str
    firmware: FirmwareName
    again: bool = False

    @property
    def name(self) -> str:
        """As it stands in verdicts and on folders: "ova-virtualbox-bios"."""
        return f"{self.kind}-{self.profile}-{self.firmware}{'-again' * self.again}"


def boots(kinds: Sequence[FormatName], *, full: bool) -> tuple[Boot, ...]:
    """Return what is booted for these formats.

    Args:
        full: Every machine that a format is for. Otherwise each file in its first machine, and, if no file was booted
            with a firmware in that way, one more machine with it. Two at least: clones are compared.
    """
    chosen = [Boot(kind=kind, profile=profile, firmware=firmware) for kind in kinds
              for profile, firmware in (MACHINES[kind] if full else MACHINES[kind][:1])]  # fmt: skip
    for wanted in FIRMWARES:
        if all(boot.firmware != wanted for boot in chosen):
            more = [Boot(kind=kind, profile=profile, firmware=firmware) for kind in kinds
                    for profile, firmware in MACHINES[kind] if firmware == wanted]  # fmt: skip
            chosen += more[:1]
    if len(chosen) == 1:
        chosen.append(replace(chosen[0], again=True))
    return tuple(chosen)
