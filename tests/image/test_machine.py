"""What every image must do in every machine: boot, grow, reach the network, answer keys only, be its own clone."""

from __future__ import annotations

import json
from collections.abc import Callable

import paramiko
import pytest
from testinfra.host import Host

from .conftest import Context, seconds_until


def test_booted_with_the_firmware_of_the_machine(host: Host, context: Context) -> None:
    assert host.file("/sys/firmware/efi").exists == (context.firmware == "uefi")


def test_answered_ssh(host: Host, context: Context, record_property: Callable[[str, object], None]) -> None:
    record_property("seconds_to_ssh", context.seconds_to_ssh)
    # By the machine's own clock, which begins with its kernel: firmware and GRUB come on top.
    started = float(host.check_output("systemctl show -p ActiveEnterTimestampMonotonic --value ssh")) / 1e6
    assert started < context.seconds_to_ssh


def test_says_what_it_is(host: Host, context: Context) -> None:
    assert json.loads(host.file("/etc/vmimage/release.json").content_string) == context.facts


def test_no_failed_unit(root: Host) -> None:
    state = root.run("systemctl is-system-running --wait").stdout.strip()
    failed = root.run("systemctl --failed --no-legend --plain").stdout
    assert (state, failed) == ("running", ""), root.run("journalctl -p err -b --no-pager | tail -20").stdout


def test_root_has_grown_to_the_disk(root: Host, context: Context) -> None:
    partition = root.check_output("findmnt -no SOURCE /")
    disk = int(root.check_output(f"lsblk -bdno SIZE /dev/$(lsblk -no PKNAME {partition})"))
    file_system = int(root.check_output("df -B1 --output=size / | tail -1"))
    # ext4 keeps some of a file system for its own tables.
    assert disk > context.grown_by
    assert file_system > 0.95 * disk


def test_address_by_dhcp(host: Host) -> None:
    # A machine under verification reaches nothing outside, so there is no default route to look for.
    links = json.loads(host.check_output("ip -json -4 address show scope global"))
    leases = [address for link in links for address in link["addr_info"] if address.get("dynamic")]
    assert len(leases) == 1, links


def test_hostname_of_the_seed(host: Host, context: Context) -> None:
    assert host.check_output("hostname") == context.hostname


def test_sudo_without_password(host: Host) -> None:
    assert host.check_output("sudo -n id -u") == "0"


@pytest.mark.parametrize("user", ["dev", "root"])
def test_ssh_offers_keys_only(context: Context, user: str) -> None:
    with paramiko.Transport(("127.0.0.1", context.port)) as transport:
        transport.start_client(timeout=60)
        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            transport.auth_none(user)
        assert refused.value.allowed_types == ["publickey"]


@pytest.mark.parametrize("user", ["dev", "root"])
def test_no_password_works_over_ssh(context: Context, user: str) -> None:
    with paramiko.Transport(("127.0.0.1", context.port)) as transport:
        transport.start_client(timeout=60)
        # Few enough for sshd's MaxAuthTries: the connection stays, and each is answered.
        for password in ("", user, "debian", "packer"):
            with pytest.raises(paramiko.BadAuthenticationType):
                transport.auth_password(user, password, fallback=False)


def test_identity_was_made_here(root: Host, context: Context) -> None:
    # That no two clones share any of it, verify compares when all are up.
    assert len(root.check_output("cat /etc/machine-id")) == 32
    keys = root.check_output("cat /etc/ssh/ssh_host_*_key.pub").splitlines()
    assert {line.split()[0] for line in keys} == {"ssh-ed25519", "ecdsa-sha2-nistp256"}
    if "k3s" in context.facts["components"]:
        assert root.file("/var/lib/rancher/k3s/server/tls/server-ca.crt").size > 0


@pytest.mark.parametrize("console", ["tty1", "ttyS0"])
def test_console_logs_dev_in(root: Host, console: str) -> None:
    # Shortly after the machine has started: the shell comes after all units.
    seconds_until(lambda: root.run(f"pgrep -u dev -t {console} bash").rc == 0)


def test_guest_agent_of_qemu_answers_where_it_has_a_channel_and_rests_elsewhere(root: Host, context: Context) -> None:
    state = root.run("systemctl is-active qemu-guest-agent").stdout.strip()
    if context.agent is None:
        assert state == "inactive"
    else:
        assert (state, context.agent["id"]) == ("active", "debian")


def test_tools_of_other_hypervisors_rest(root: Host) -> None:
    assert root.run("systemd-detect-virt").stdout.strip() in ("qemu", "kvm"), "else this tests another machine"
    assert root.run("systemctl is-active open-vm-tools vgauth").stdout.split() == ["inactive", "inactive"]
    assert "vboxguest" not in root.check_output("lsmod")
