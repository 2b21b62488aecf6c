"""Component k3s: starts at the first boot without a network, keeps working, and has nothing of the bake's identity."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host

from .conftest import Context

IMAGES = "/var/lib/rancher/k3s/agent/images"
ADDRESS = "203.0.113.254"
# Asks for the address of "localhost", as RFC 1035 has it.
LOOK_UP = f"""
import socket
question = bytes.fromhex("000101000001000000000000") + b"\\x09localhost\\0" + bytes.fromhex("00010001")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
    asks.settimeout(10)
    asks.sendto(question, ("{ADDRESS}", 53))
    print(socket.inet_ntoa(asks.recv(512)[len(question) + 12 :][:4]))
"""
KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"


def test_k3s_is_the_pinned_version(host: Host, context: Context) -> None:
    assert context.version("k3s") in host.check_output("k3s --version")


def test_k3s_starts_at_boot_without_a_network(root: Host) -> None:
    assert root.service("k3s").is_enabled
    assert root.service("k3s").is_running
    routes = json.loads(root.check_output("ip -json route show default"))
    assert [route["dev"] for route in routes if route["dev"] == "dev-env0"] == ["dev-env0"]


def test_node_reports_of_this_boot_and_this_version(host: Host, context: Context) -> None:
    (node,) = json.loads(host.check_output("kubectl get nodes -o json"))["items"]
    info = node["status"]["nodeInfo"]
    assert info["bootID"] == host.check_output("cat /proc/sys/kernel/random/boot_id")
    assert info["kubeletVersion"] == context.version("k3s")


def test_machine_answers_for_name_servers_where_pods_ask(host: Host) -> None:
    assert f"nameserver {ADDRESS}" in host.check_output(
        "cat $(sed -n 's/^resolv-conf: //p' /etc/rancher/k3s/config.yaml)"
    )
    assert host.check_output("python3 -c %s", LOOK_UP) == "127.0.0.1"


@pytest.mark.usefixtures("real")
def test_kubelet_waits_until_a_slow_machine_has_unpacked_an_image(host: Host) -> None:
    found = json.loads(host.check_output("kubectl get --raw /api/v1/nodes/dev-env/proxy/configz"))
    assert found["kubeletconfig"]["runtimeRequestTimeout"] == "15m0s"


def test_containers_are_ended_before_the_machine_goes_down(root: Host) -> None:
    assert root.service("k3s-shutdown").is_running
    assert "k3s.service" in root.check_output("systemctl show -p Before --value k3s-shutdown").split()


def test_images_are_there_before_the_first_start(root: Host) -> None:
    assert root.file(f"{IMAGES}/k3s-airgap-images.tar.zst").size > 0
    assert root.file(f"{IMAGES}/.cache.json").exists


def test_kubeconfig_is_for_dev_and_nobody_else(root: Host) -> None:
    file = root.file(KUBECONFIG)
    assert (file.user, file.group, file.mode) == ("root", "dev", 0o640)
    assert root.run(f"sudo -u nobody cat {KUBECONFIG}").rc != 0


def test_dev_uses_the_cluster(host: Host) -> None:
    nodes = json.loads(host.check_output("kubectl get nodes -o json"))["items"]
    assert [node["metadata"]["name"] for node in nodes] == ["dev-env"]
    conditions = {each["type"]: each["status"] for each in nodes[0]["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    addresses = [each["address"] for each in nodes[0]["status"]["addresses"] if each["type"] == "InternalIP"]
    assert addresses == [ADDRESS]


def test_cluster_answers_at_the_address_of_the_machine_by_the_name_that_its_certificate_has(
    host: Host, address: str
) -> None:
    # As the context of `invoke kubeconfig --host ADDRESS` does.
    ask = f"kubectl --server=https://{address}:6443"
    assert host.check_output(f"{ask} --tls-server-name=localhost get nodes -o name") == "node/dev-env"
    refused = host.run(f"{ask} get nodes -o name")
    assert refused.rc != 0
    assert "certificate" in refused.stderr


def test_cluster_survives_another_hostname_and_a_restart(root: Host) -> None:
    before = root.check_output("sha256sum /var/lib/rancher/k3s/server/tls/server-ca.crt")
    old = root.check_output("hostname")
    root.check_output("kubectl --kubeconfig %s create configmap kept --from-literal=a=b", KUBECONFIG)
    try:
        root.check_output("hostnamectl set-hostname elsewhere && systemctl restart k3s && dev-env wait")
        assert root.check_output("kubectl --kubeconfig %s get nodes -o name", KUBECONFIG) == "node/dev-env"
        assert root.check_output("kubectl --kubeconfig %s get configmap kept -o name", KUBECONFIG) == "configmap/kept"
        assert root.check_output("sha256sum /var/lib/rancher/k3s/server/tls/server-ca.crt") == before
    finally:
        root.check_output("hostnamectl set-hostname %s", old)
        root.check_output("kubectl --kubeconfig %s delete configmap kept", KUBECONFIG)


def test_images_were_imported_once_though_k3s_was_started_again(root: Host) -> None:
    """The check before has started it again. An import takes minutes where the machine is emulated."""
    imported = root.check_output("journalctl -b -u k3s -o cat | grep -o 'Importing images from [^\" ]*'").splitlines()
    archives = root.check_output("find %s -name '*.tar*'", IMAGES).split()
    assert sorted(line.rpartition(" ")[2] for line in imported) == sorted(archives)


def test_completion_of_kubectl_and_its_like(host: Host) -> None:
    for name in ("kubectl", "helm", "k3s", "crictl"):
        assert host.file(f"/usr/share/bash-completion/completions/{name}").exists
