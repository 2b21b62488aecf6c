"""Component k3s: starts at the first boot without a network, keeps working, and has nothing of the bake's identity."""

from __future__ import annotations

import json

from testinfra.host import Host

from .conftest import Context

IMAGES = "/var/lib/rancher/k3s/agent/images"
KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"


def test_k3s_is_the_pinned_version(host: Host, context: Context) -> None:
    assert context.version("k3s") in host.check_output("k3s --version")


def test_k3s_starts_at_boot_without_a_network(root: Host) -> None:
    assert root.service("k3s").is_enabled
    assert root.service("k3s").is_running
    routes = json.loads(root.check_output("ip -json route show default"))
    assert [route["dev"] for route in routes if route["dev"] == "dev-env0"] == ["dev-env0"]


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
    assert addresses == ["203.0.113.254"]


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


def test_completion_of_kubectl_and_its_like(host: Host) -> None:
    for name in ("kubectl", "helm", "k3s", "crictl"):
        assert host.file(f"/usr/share/bash-completion/completions/{name}").exists
