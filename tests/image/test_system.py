"""Component system: the user dev and the settings of files/10-system."""

from __future__ import annotations

import pytest
from testinfra.host import Host

# Without these the disk is not found; what QEMU can be is booted, VMware's own and Hyper-V's it cannot.
DISK_DRIVERS = {"ahci", "ata_piix", "nvme", "virtio_blk", "virtio_scsi", "vmw_pvscsi", "mptsas", "hv_storvsc"}


def test_user_dev(host: Host) -> None:
    user = host.user("dev")
    assert (user.uid, user.home, user.shell) == (1000, "/home/dev", "/bin/bash")


def test_sshd_as_configured(root: Host) -> None:
    settings = root.check_output("sshd -T")
    for line in ("passwordauthentication no", "kbdinteractiveauthentication no", "permitrootlogin no"):
        assert line in settings.splitlines()


def test_drivers_of_disks_are_there_before_the_root_is(root: Host) -> None:
    names = {
        line.rsplit("/", 1)[-1].split(".ko")[0]
        for line in root.check_output("lsinitramfs /boot/initrd.img-*").splitlines()
    }
    builtin = set(root.check_output("sed 's|.*/||; s|[.]ko$||' /lib/modules/*/modules.builtin").split())
    assert DISK_DRIVERS - {name.replace("-", "_") for name in names | builtin} == set()


@pytest.mark.parametrize(
    "modules",
    [
        "vboxguest vboxsf vboxvideo",
        "vmxnet3 vmw_balloon vmwgfx vmw_vsock_vmci_transport",
        "hv_vmbus hv_netvsc hv_balloon hv_utils hyperv_drm",
    ],
    ids=["VirtualBox", "VMware", "Hyper-V"],
)
def test_kernel_has_the_guest_drivers_of(root: Host, modules: str) -> None:
    root.check_output(f"modinfo -F filename {modules}")


def test_open_vm_tools_start_in_vmware_only(root: Host) -> None:
    assert root.check_output("systemctl is-enabled open-vm-tools") == "enabled"
    assert "ConditionVirtualization=vmware" in root.check_output("systemctl cat open-vm-tools")


def test_console_says_how_to_add_a_key_where_there_is_none(host: Host) -> None:
    assert "ssh takes keys only" in host.check_output("HOME=/tmp bash -lic true 2>/dev/null")
    assert "ssh takes keys only" not in host.check_output("bash -lic true 2>/dev/null")
