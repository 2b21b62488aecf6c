"""Machine profiles: the virtual hardware of one hypervisor each, as QEMU can give it.

Which of these boot, and with which firmware, was tried with Debian 13 in QEMU 7.2: Debian's UEFI has no driver for
VMware's pvscsi and for LSI's SAS, and none for Hyper-V's own devices, so those profiles are for BIOS.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmimage.util.firmware import FIRMWARES, FirmwareName


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The devices of a machine.

    Attributes:
        like: What it stands for.
        board: QEMU's machine type.
        disk: `-device` options that attach the drive `root`; the last takes `bootindex`.
        seed: `-device` options that attach the drive `seed`.
        network: Model of the network adapter.
        agent: Whether QEMU's guest agent has a channel to the host.
        firmwares: Those with which it boots.
    """

    like: str
    board: str
    disk: tuple[str, ...]
    seed: tuple[str, ...]
    network: str
    agent: bool = False
    firmwares: tuple[FirmwareName, ...] = FIRMWARES


_AHCI = "ich9-ahci,id=sata"
_SEED_SATA = ("ide-cd,bus=sata.1,drive=seed",)

PROFILES = {
    "virtio": Profile(
        like="QEMU, libvirt, UTM",
        board="q35",
        disk=("virtio-blk-pci,drive=root",),
        seed=("virtio-blk-pci,drive=seed",),
        network="virtio-net-pci",
        agent=True,
    ),
    "libvirt": Profile(
        like="Vagrant's libvirt plugin: virtio on an older board",
        board="pc",
        disk=("virtio-blk-pci,drive=root",),
        seed=("ide-cd,bus=ide.1,drive=seed",),
        network="virtio-net-pci",
        agent=True,
    ),
    "virtio-scsi": Profile(
        like="QEMU, libvirt, VirtualBox with virtio",
        board="q35",
        disk=("virtio-scsi-pci,id=scsi", "scsi-hd,bus=scsi.0,drive=root"),
        seed=("scsi-cd,bus=scsi.0,drive=seed",),
        network="virtio-net-pci",
        agent=True,
    ),
    "virtualbox": Profile(
        like="VirtualBox: SATA and an Intel PRO/1000 MT",
        board="pc",
        disk=(_AHCI, "ide-hd,bus=sata.0,drive=root"),
        seed=_SEED_SATA,
        network="e1000",
    ),
    "virtualbox-server": Profile(
        like="VirtualBox: SATA and an Intel PRO/1000 MT Server",
        board="pc",
        disk=(_AHCI, "ide-hd,bus=sata.0,drive=root"),
        seed=_SEED_SATA,
        network="e1000-82545em",
    ),
    "virtualbox-ide": Profile(
        like="VirtualBox: IDE and an AMD PCnet",
        board="pc",
        disk=("ide-hd,bus=ide.0,drive=root",),
        seed=("ide-cd,bus=ide.1,drive=seed",),
        network="pcnet",
    ),
    "vmware": Profile(
        like="VMware: SATA and vmxnet3",
        board="pc",
        disk=(_AHCI, "ide-hd,bus=sata.0,drive=root"),
        seed=_SEED_SATA,
        network="vmxnet3",
    ),
    "vmware-nvme": Profile(
        like="VMware: NVMe and vmxnet3",
        board="q35",
        disk=("nvme,serial=root,drive=root",),
        seed=("ide-cd,bus=ide.0,drive=seed",),
        network="vmxnet3",
    ),
    "vmware-pvscsi": Profile(
        like="VMware: paravirtual SCSI and vmxnet3",
        board="pc",
        disk=("pvscsi,id=scsi", "scsi-hd,bus=scsi.0,drive=root"),
        seed=("ide-cd,bus=ide.1,drive=seed",),
        network="vmxnet3",
        firmwares=("bios",),
    ),
    "vmware-lsi": Profile(
        like="VMware: LSI Logic SAS and e1000e",
        board="pc",
        # Linux's driver ignores a disk without a world-wide name.
        disk=("mptsas1068,id=scsi", "scsi-hd,bus=scsi.0,drive=root,wwn=0x5000c29000000001"),
        seed=("ide-cd,bus=ide.1,drive=seed",),
        network="e1000e",
        firmwares=("bios",),
    ),
    "q35-sata": Profile(
        like="a PC of today: SATA and e1000e",
        board="q35",
        disk=("ide-hd,bus=ide.0,drive=root",),
        seed=("ide-cd,bus=ide.1,drive=seed",),
        network="e1000e",
    ),
    "hyperv": Profile(
        like="Hyper-V, generation 1: IDE and a DEC Tulip",
        board="pc",
        disk=("ide-hd,bus=ide.0,drive=root",),
        seed=("ide-cd,bus=ide.1,drive=seed",),
        network="tulip",
        firmwares=("bios",),
    ),
}

# How `invoke run --as` calls them.
HYPERVISORS = {"kvm": "virtio", "virtualbox": "virtualbox", "vmware": "vmware", "hyperv": "hyperv"}
