"""Component system: what containers, hypervisors and VPNs make in the machine stays as they made it.

Interfaces are made here as k3s, docker, podman, libvirt and WireGuard make them, by iproute2, and are looked at some
time later: systemd-networkd, udev and others had the time to grab them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from testinfra.host import Host

SECONDS = 20
NAMESPACE = "vmimage-test"
BRIDGE, INSIDE = "192.0.2.1", "192.0.2.2"
# (name, what `ip link add` is told behind it); the veth's other end is eth0 of a network namespace, as in a pod.
LINKS = {
    "t-bridge": "type bridge",
    "t-veth": f"type veth peer name eth0 netns {NAMESPACE}",
    "t-plain": "type veth peer name t-peer",
    "t-bond": "type bond",
    "t-dummy": "type dummy",
    "t-vlan": "link t-bridge type vlan id 7",
    "t-vxlan": "type vxlan id 99 dstport 4789",
    "t-macvlan": "link t-bridge type macvlan",
    "t-wireguard": "type wireguard",
}
TUNNELS = {"t-tun": "tun", "t-tap": "tap"}
MASTERS = {"t-veth": "t-bridge", "t-tap": "t-bridge", "t-dummy": "t-bond"}
NAMES = [*LINKS, *TUNNELS, "t-peer"]
# The kernel's word (addr_assign_type) for a MAC address that it made up: nobody has set another one since.
RANDOM = "1"
ROUTE, RULE = "198.51.100.0/24 via 192.0.2.2 dev t-bridge", "from 192.0.2.9 lookup 99"


def batch() -> str:
    """Return what makes the interfaces, for `ip -batch`."""
    lines = [f"link add name {name} {how}" for name, how in LINKS.items()]
    lines += [f"tuntap add dev {name} mode {mode}" for name, mode in TUNNELS.items()]
    lines += [f"link set {name} master {master}" for name, master in MASTERS.items()]
    lines += [f"link set {name} up" for name in NAMES]
    lines += [f"addr add {BRIDGE}/24 dev t-bridge", "addr add 203.0.113.1/30 dev t-wireguard"]
    lines += [f"route add {ROUTE}", f"rule add {RULE}"]
    return "\n".join(lines)


def seen(host: Host) -> dict[str, Any]:
    """Return what must stay of each interface: its bridge or bond, and its addresses."""
    found: dict[str, Any] = {}
    for link in json.loads(host.check_output("ip -json -4 address show")) + json.loads(
        host.check_output("ip -json link show")
    ):
        if link.get("ifname") in NAMES:
            known = found.setdefault(link["ifname"], {})
            known |= {key: link[key] for key in ("master", "address", "mtu") if key in link}
            known["addresses"] = known.get("addresses", []) + [each["local"] for each in link.get("addr_info", [])]
    return found


@dataclass(frozen=True)
class Begun:
    """The interfaces as they were right after they were made, and when that was, by this host's monotonic clock."""

    before: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module")
def begun(host: Host) -> Iterator[Begun]:
    """The interfaces, which have just been made."""
    with host.sudo():
        host.check_output("ip netns add %s", NAMESPACE)
        try:
            host.check_output("printf %s | ip -batch -", batch())
            inside = f"addr add {INSIDE}/24 dev eth0\nlink set eth0 up"
            host.check_output("printf %s | ip -netns %s -batch -", inside, NAMESPACE)
            yield Begun(seen(host), time.monotonic())
        finally:
            lines = [f"netns delete {NAMESPACE}", f"rule delete {RULE}", *(f"link delete {name}" for name in NAMES)]
            host.run("printf %s | ip -force -batch -", "\n".join(lines))


@pytest.fixture(scope="module")
def made(begun: Begun) -> dict[str, Any]:
    """The interfaces as they were right after they were made; SECONDS have passed since."""
    time.sleep(max(0.0, begun.seconds + SECONDS - time.monotonic()))
    return begun.before


@pytest.mark.usefixtures("begun")
def test_disk_that_is_not_the_roots_keeps_its_free_space(root: Host) -> None:
    """First in this file: meanwhile, the time passes for which the interfaces have to be there."""
    # One partition of the type that the root has, and room behind it, as on a disk that somebody attaches.
    root.check_output("mkdir /tmp/d && printf '[Partition]\\nType=root\\nSizeMaxBytes=16M\\n' > /tmp/d/1.conf")
    make = "systemd-repart --empty=create --size=64M --dry-run=no --definitions=/tmp/d --json=short /tmp/other.raw"
    root.check_output(make)
    before = root.check_output("sha256sum /tmp/other.raw")
    device = root.check_output("losetup --show --find --partscan /tmp/other.raw")
    try:
        root.check_output("udevadm settle && systemctl restart systemd-repart.service && udevadm settle")
        assert root.check_output("sha256sum /tmp/other.raw") == before
        assert "/" in root.check_output("lsblk -nro MOUNTPOINTS").split(), "the root is listed"
        assert root.check_output("lsblk -nro MOUNTPOINTS %s", device) == ""
    finally:
        root.run("losetup --detach %s; rm -r /tmp/d /tmp/other.raw", device)


def test_bridge_still_leads_into_the_namespace(root: Host, made: dict[str, Any]) -> None:
    bridged = json.loads(root.check_output("bridge -json link show"))
    assert {link["ifname"]: link["master"] for link in bridged if link["ifname"] in NAMES} == {
        "t-veth": "t-bridge",
        "t-tap": "t-bridge",
    }
    root.check_output("ping -c 1 -w 10 %s", INSIDE)


def test_networkd_leaves_them_alone(root: Host, made: dict[str, Any]) -> None:
    listed = json.loads(root.check_output("networkctl list --json=short"))["Interfaces"]
    states = {link["Name"]: link["AdministrativeState"] for link in listed if link["Name"] in NAMES}
    assert states == dict.fromkeys(NAMES, "unmanaged")
    log = root.check_output("journalctl -b --quiet -o cat -u systemd-networkd").splitlines()
    assert [line for line in log if line.startswith(tuple(f"{name}: " for name in NAMES)) and "DHCP" in line] == []


def test_interfaces_are_as_they_were_made(root: Host, made: dict[str, Any]) -> None:
    assert set(made) == set(NAMES), "udev renamed none, nor anything else"
    assert seen(root) == made


def test_udev_sets_no_other_mac_addresses(root: Host, made: dict[str, Any]) -> None:
    names = ["t-bridge", "t-veth", "t-plain", "t-peer", "t-vxlan", "t-macvlan", "t-tap"]
    said = root.check_output(f"cd /sys/class/net && grep . {' '.join(f'{name}/addr_assign_type' for name in names)}")
    assert said.splitlines() == [f"{name}/addr_assign_type:{RANDOM}" for name in names]


def test_routes_and_rules_outlive_a_restart_of_networkd(root: Host, made: dict[str, Any]) -> None:
    root.check_output("systemctl restart systemd-networkd")
    root.check_output("/usr/lib/systemd/systemd-networkd-wait-online --any --timeout=60")
    assert root.check_output("ip route show 198.51.100.0/24").strip() == ROUTE
    assert RULE in root.check_output("ip rule show")
    assert seen(root) == made
    root.check_output("ping -c 1 -w 10 %s", INSIDE)


def test_resolved_neither_asks_nor_answers_there(root: Host, made: dict[str, Any]) -> None:
    assert "Current Scopes: none" in root.check_output("resolvectl status t-bridge")
    listens = root.check_output("ss --no-header --listening --numeric --udp --tcp --processes").splitlines()
    places = [line.split()[4] for line in listens if "systemd-resolve" in line]
    assert places
    # Not at every address, so that a name server for containers finds port 53 of its bridge free; no LLMNR, no mDNS.
    assert not [place for place in places if not place.startswith(("127.0.0.5", "203.0.113.254"))]
    root.check_output("python3 -c %s", f"import socket; socket.socket(type=socket.SOCK_DGRAM).bind(('{BRIDGE}', 53))")


def test_cloud_init_does_not_wait_for_interfaces(root: Host, made: dict[str, Any]) -> None:
    assert root.check_output("find /etc/udev /run/udev -name '*cloud-init*hotplug*'") == ""
    started = "systemctl show -p ExecMainStartTimestampMonotonic --value cloud-init-hotplugd.service"
    assert root.check_output(started) == "0"
