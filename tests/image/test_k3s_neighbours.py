"""Component k3s: what the network of the machine reaches of it; a namespace beside an own link plays a neighbour."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from testinfra.host import Host

NAMESPACE = "neighbour"
HERE, THERE = "192.0.2.1", "192.0.2.2"
OTHERS = ("203.0.113.254", "10.42.0.1")
"""Addresses that the machine has for pods and services."""
MADE = f"""
netns add {NAMESPACE}
link add name entest0 type veth peer name eth0 netns {NAMESPACE}
addr add {HERE}/24 dev entest0
link set entest0 up
"""
MADE_THERE = f"addr add {THERE}/24 dev eth0\nlink set eth0 up\nroute add default via {HERE}"
# Listens at every address of the machine, as services do that k3s has open for itself.
PORT = 10999
LISTEN = f"import socket; s = socket.create_server(('0.0.0.0', {PORT}))\nwhile True: s.accept()[0].close()"
ASK = f"""
import json, socket
from concurrent.futures import ThreadPoolExecutor
def reaches(place):
    try:
        socket.create_connection(place, timeout=10).close()
    except OSError:
        return False
    return True
places = [(address, port) for address in {(HERE, *OTHERS)} for port in (22, 6443, 10250, {PORT})]
with ThreadPoolExecutor(len(places)) as pool:
    print(json.dumps([place for place, found in zip(places, pool.map(reaches, places)) if found]))
"""
# Asks for the address of "localhost", as RFC 1035 has it.
ASK_NAMES = f"""
import socket
question = bytes.fromhex("000101000001000000000000") + b"\\x09localhost\\0" + bytes.fromhex("00010001")
asks = socket.socket(type=socket.SOCK_DGRAM)
asks.settimeout(3)
asks.sendto(question, ("{OTHERS[0]}", 53))
print(asks.recv(512))
"""


@pytest.fixture(scope="module")
def neighbour(host: Host) -> Iterator[str]:
    """A host of the same network; yields what runs a command there."""
    with host.sudo():
        try:
            host.check_output("printf %s | ip -batch -", MADE)
            host.check_output("printf %s | ip -netns %s -batch -", MADE_THERE, NAMESPACE)
            host.check_output("systemd-run --quiet --unit=listens python3 -c %s", LISTEN)
            yield f"ip netns exec {NAMESPACE}"
        finally:
            host.run("systemctl stop listens; ip link delete entest0; ip netns delete %s", NAMESPACE)


def test_neighbours_reach_ssh_and_the_cluster_and_nothing_else(root: Host, neighbour: str) -> None:
    assert json.loads(root.check_output(f"{neighbour} python3 -c %s", ASK)) == [[HERE, 22], [HERE, 6443]]
    assert root.run(f"{neighbour} python3 -c %s", ASK_NAMES).rc != 0, "nor its name server"


def test_the_machine_reaches_its_neighbours(root: Host, neighbour: str) -> None:
    root.check_output("ping -c 1 -w 10 %s", THERE)
    root.check_output(f"{neighbour} ping -c 1 -w 10 %s", HERE)


def test_without_the_service_all_is_reached(root: Host, neighbour: str) -> None:
    """So that the check above shows what the service does."""
    root.check_output("systemctl stop dev-env-neighbours")
    try:
        assert [HERE, PORT] in json.loads(root.check_output(f"{neighbour} python3 -c %s", ASK))
    finally:
        root.check_output("systemctl start dev-env-neighbours")
