"""What a new k3s cluster has: its node, and the parts of k3s itself as Deployments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.k3s_stand_in.program.controllers import condition, ensure, set_status
from tests.k3s_stand_in.program.network import End
from tests.k3s_stand_in.program.objects import Object, Objects
from tests.k3s_stand_in.program.version import VERSION

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
PARTS = {"coredns": "coredns", "traefik": "traefik", "metrics-server": "metrics-server",
         "local-path-provisioner": "local-storage"}  # fmt: skip
TRAEFIK_PORT = 8000


@dataclass(frozen=True)
class Facts:
    """What the objects of a new cluster say of this machine.

    Attributes:
        http_port: Where Traefik answers.
        dns: Where DNS answers.
    """

    node: str
    address: str
    disabled: frozenset[str]
    http_port: int
    dns: End


def first_objects(objects: Objects, facts: Facts) -> None:
    """Make what a new k3s cluster has, and report as the kubelet does at every start."""
    for name in NAMESPACES:
        ensure(objects, "namespaces", "", name, "v1", "Namespace", {"spec": {"finalizers": ["kubernetes"]}})
    status = {
        "conditions": [condition("Ready", reason="KubeletReady")],
        "addresses": [{"type": "InternalIP", "address": facts.address}, {"type": "Hostname", "address": facts.node}],
        "nodeInfo": {
            "kubeletVersion": VERSION,
            "containerRuntimeVersion": "containerd://stand-in",
            "bootID": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        },
    }
    ensure(objects, "nodes", "", facts.node, "v1", "Node", {"spec": {}})
    set_status(objects, ("nodes", "", facts.node), status)
    spec: Object = {"ports": [{"name": "https", "port": 443, "targetPort": 6443, "protocol": "TCP"}]}
    service(objects, "default", "kubernetes", spec)
    for part in (part for part, name in PARTS.items() if name not in facts.disabled):
        ensure(objects, "deployments", "kube-system", part, "apps/v1", "Deployment", deployment(part))
    if "coredns" not in facts.disabled:
        address, port = facts.dns
        ports = [
            {"name": name, "port": port, "targetPort": port, "protocol": protocol}
            for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
        ]
        spec = {"clusterIP": address, "selector": {"k8s-app": "kube-dns"}, "ports": ports}
        service(objects, "kube-system", "kube-dns", spec)
    if "traefik" not in facts.disabled:
        ports = [
            {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}
            for name, port in (("web", facts.http_port), ("websecure", 443))
        ]
        spec = {"type": "LoadBalancer", "selector": {"app": "traefik"}, "ports": ports}
        service(objects, "kube-system", "traefik", spec)
        controller = {"spec": {"controller": "traefik.io/ingress-controller"}}
        ensure(objects, "ingressclasses", "", "traefik", "networking.k8s.io/v1", "IngressClass", controller)


def deployment(part: str) -> Object:
    """Return a part of k3s."""
    labels = {"app": part} | ({"k8s-app": "kube-dns"} if part == "coredns" else {})
    container: Object = {"name": part, "image": f"rancher/{part}"}
    if part == "traefik":
        container["ports"] = [{"name": "web", "containerPort": TRAEFIK_PORT}]
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    return {"spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}}


def service(objects: Objects, namespace: str, name: str, spec: Object) -> None:
    """Make a service; its ports may be others at another start."""
    ensure(objects, "services", namespace, name, "v1", "Service", {"spec": spec})
    found = objects.get(("services", namespace, name))
    if [port["port"] for port in found["spec"]["ports"]] != [port["port"] for port in spec["ports"]]:
        objects.put(("services", namespace, name), {**found, "spec": {**found["spec"], "ports": spec["ports"]}})
