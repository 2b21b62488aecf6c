"""Component system: the user dev and the settings of files/10-system."""

from __future__ import annotations

import shlex

import pytest
from testinfra.host import Host

# Without these the root file system is not found, or not the seed on a CD, for which ds-identify looks when systemd
# starts. What QEMU can be is booted; VMware's own and Hyper-V's it cannot be.
EARLY_DRIVERS = {
    "ahci",
    "ata_piix",
    "nvme",
    "virtio_blk",
    "virtio_scsi",
    "vmw_pvscsi",
    "mptsas",
    "hv_storvsc",
    "sr_mod",
}

DRIVERS = {
    "VirtualBox": "vboxguest vboxsf vboxvideo e1000 pcnet32 ahci ata_piix mptspi BusLogic",
    "VMware": "vmxnet3 vmw_balloon vmwgfx vmw_vsock_vmci_transport vmw_pvscsi e1000e mptsas nvme",
    "Hyper-V": "hv_vmbus hv_netvsc hv_storvsc hv_balloon hv_utils hv_sock hyperv_drm hyperv_keyboard hid_hyperv tulip",
    "QEMU": "virtio_net virtio_blk virtio_scsi virtio_balloon virtio_console virtio_rng virtio_gpu virtio_input "
    "virtio_crypto virtiofs 9p 9pnet_virtio bochs qxl cirrus 8139cp megaraid_sas sym53c8xx i6300esb qemu_fw_cfg",
    "adapters that clouds pass through": "igbvf ixgbevf iavf mlx4_core mlx5_core ena gve mana bnxt_en",
    "USB": "usb_storage uas usbhid hid_generic xhci_pci ehci_pci uhci_hcd ohci_pci cdc_acm ftdi_sio",
    "networks of containers": "overlay br_netfilter bridge vxlan veth wireguard ipip nf_conntrack nft_chain_nat "
    "ip_tables xt_MASQUERADE xt_comment ip_vs ip_set tun vhost_net smc",
    "volumes": "nfs nfsd cifs ceph rbd nbd iscsi_tcp dm_mod dm_crypt fuse loop btrfs xfs",
}


def test_user_dev(host: Host) -> None:
    user = host.user("dev")
    assert (user.uid, user.home, user.shell) == (1000, "/home/dev", "/bin/bash")


def test_sshd_as_configured(root: Host) -> None:
    settings = root.check_output("sshd -T")
    for line in ("passwordauthentication no", "kbdinteractiveauthentication no", "permitrootlogin no"):
        assert line in settings.splitlines()


def test_drivers_of_disks_and_cds_are_there_before_the_root_is(root: Host) -> None:
    names = {
        line.rsplit("/", 1)[-1].split(".ko")[0]
        for line in root.check_output("lsinitramfs /boot/initrd.img-*").splitlines()
    }
    builtin = set(root.check_output("sed 's|.*/||; s|[.]ko$||' /lib/modules/*/modules.builtin").split())
    assert EARLY_DRIVERS - {name.replace("-", "_") for name in names | builtin} == set()


def test_root_was_checked_before_it_was_written_to(root: Host) -> None:
    # By the initrd or, where that has no fsck, by systemd.
    said = root.run("cat /run/initramfs/fsck.log; journalctl -b -o cat -u systemd-fsck-root").stdout
    assert "root: clean" in said


def test_kernel_has_the_drivers_and_all_that_they_need(root: Host) -> None:
    wanted, found = set(" ".join(DRIVERS.values()).split()), set[str]()
    while wanted:
        found |= wanted
        # modinfo fails, and names it, for one that is not there; what is built in, it knows.
        needed = root.check_output(f"modinfo -F depends {' '.join(sorted(wanted))}")
        wanted = set(needed.replace(",", " ").split()) - found
    assert "ib_core" in found, "what is needed is followed: smc needs it"


def test_what_is_excluded_is_not_there(root: Host) -> None:
    settings = root.check_output("cat /etc/dpkg/dpkg.cfg.d/50-vmimage").splitlines()
    excluded, kept = (
        [line.removeprefix(f"path-{kind}=") for line in settings if line.startswith(f"path-{kind}=")]
        for kind in ("exclude", "include")
    )
    if not excluded:
        pytest.skip("images.yaml excludes nothing")
    # find's -path and dpkg agree on *: it matches slashes too. dpkg leaves out no links: they may lead to what is kept.
    # base-files makes an empty index of info files when it is installed.
    named = " -o ".join(f"-path {shlex.quote(pattern)}" for pattern in excluded)
    spared = "".join(f" ! -path {shlex.quote(pattern)}" for pattern in kept)
    find = "find /usr /etc /boot -xdev -type f ! -path /usr/share/info/dir"
    assert root.check_output(f"{find} \\( {named} \\){spared}") == ""


def test_open_vm_tools_start_in_vmware_only(root: Host) -> None:
    assert root.check_output("systemctl is-enabled open-vm-tools") == "enabled"
    assert "ConditionVirtualization=vmware" in root.check_output("systemctl cat open-vm-tools")


def test_console_says_how_to_add_a_key_where_there_is_none(host: Host) -> None:
    assert "ssh takes keys only" in host.check_output("HOME=/tmp bash -lic true 2>/dev/null")
    assert "ssh takes keys only" not in host.check_output("bash -lic true 2>/dev/null")
