"""What a control plane makes of objects: everything is well at once, without a container anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.k3s_stand_in.program.objects import Key, Object, Objects, Refused, now
from tests.k3s_stand_in.program.version import VERSION

NODE_PORTS = range(30000, 32768)
NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
PARTS = {"coredns": "coredns", "traefik": "traefik", "metrics-server": "metrics-server",
         "local-path-provisioner": "local-storage"}  # fmt: skip


def condition(kind: str, status: str = "True", reason: str = "Simulated") -> Object:
    """Return a condition of a status."""
    return {"type": kind, "status": status, "reason": reason, "lastTransitionTime": now(), "lastUpdateTime": now()}


def first_objects(objects: Objects, node: str, address: str, disabled: set[str], http_port: int) -> None:
    """Make what a new k3s cluster has, and report as the kubelet does at every start."""
    for name in NAMESPACES:
        ensure(objects, "namespaces", "", name, "v1", "Namespace", {"spec": {"finalizers": ["kubernetes"]}})
    status = {
        "conditions": [condition("Ready", reason="KubeletReady")],
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": node}],
        "nodeInfo": {
            "kubeletVersion": VERSION,
            "containerRuntimeVersion": "containerd://stand-in",
            "bootID": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        },
    }
    ensure(objects, "nodes", "", node, "v1", "Node", {"spec": {}})
    set_status(objects, ("nodes", "", node), status)
    spec = {"type": "ClusterIP", "ports": [{"name": "https", "port": 443, "targetPort": 6443, "protocol": "TCP"}]}
    ensure(objects, "services", "default", "kubernetes", "v1", "Service", {"spec": spec})
    for part in (part for part, name in PARTS.items() if name not in disabled):
        labels = {"app": part}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": part, "image": part}]}}
        deployment = {"spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}}
        ensure(objects, "deployments", "kube-system", part, "apps/v1", "Deployment", deployment)
    if "traefik" not in disabled:
        ports = [
            {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}
            for name, port in (("web", http_port), ("websecure", 443))
        ]
        service = {"spec": {"type": "LoadBalancer", "selector": {"app": "traefik"}, "ports": ports}}
        ensure(objects, "services", "kube-system", "traefik", "v1", "Service", service)
        ensure(
            objects,
            "ingressclasses",
            "",
            "traefik",
            "networking.k8s.io/v1",
            "IngressClass",
            {"spec": {"controller": "traefik.io/ingress-controller"}},
        )


def ensure(objects: Objects, resource: str, namespace: str, name: str, version: str, kind: str, rest: Object) -> None:
    """Make an object if it is not there."""
    key: Key = (resource, namespace, name)
    if key in objects.objects:
        return
    meta = {"name": name, "labels": {"kubernetes.io/metadata.name": name} if resource == "namespaces" else {}}
    if namespace:
        meta["namespace"] = namespace
    wanted = {"apiVersion": version, "kind": kind, "metadata": meta, **rest}
    admit(objects, key, wanted)
    objects.put(key, wanted)
    settle(objects, key)


def admit(objects: Objects, key: Key, wanted: Object) -> None:
    """Fill in what the API server fills in before it stores an object.

    Raises:
        Refused: It is not valid.
    """
    resource, namespace, _ = key
    if namespace and ("namespaces", "", namespace) not in objects.objects:
        raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')
    spec = wanted.get("spec", {})
    if resource == "namespaces":
        wanted["status"] = {"phase": "Active"}
    if resource == "secrets":
        wanted.setdefault("type", "Opaque")
    if resource == "services":
        admit_service(objects, key, spec)
    if resource in ("deployments", "statefulsets", "replicasets"):
        spec.setdefault("replicas", 1)


def admit_service(objects: Objects, key: Key, spec: Object) -> None:
    """Give a service its address and its NodePorts."""
    old = objects.objects.get(key, {}).get("spec", {})
    services = {other: found for other, found in objects.objects.items() if other[0] == "services" and other != key}
    spec.setdefault("type", "ClusterIP")
    if spec["type"] != "ExternalName" and not spec.get("clusterIP"):
        used = {found["spec"].get("clusterIP") for found in services.values()}
        spec["clusterIP"] = old.get("clusterIP") or next(
            address for number in range(1, 60000) if (address := f"10.43.{number >> 8}.{number & 255}") not in used
        )
    taken = {port.get("nodePort") for found in services.values() for port in found["spec"].get("ports", [])}
    for port in spec.get("ports") or []:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])
        if spec["type"] in ("NodePort", "LoadBalancer"):
            before = next((each.get("nodePort") for each in old.get("ports", []) if each["port"] == port["port"]), None)
            number = port.get("nodePort") or before or next(free for free in NODE_PORTS if free not in taken)
            if number in taken or number not in NODE_PORTS:
                text = (
                    "provided port is already allocated"
                    if number in taken
                    else "provided port is not in the valid range"
                )
                raise Refused(
                    422,
                    "Invalid",
                    f'Service "{key[2]}" is invalid: spec.ports[0].nodePort: Invalid value: {number}: {text}',
                )
            port["nodePort"] = number
            taken.add(number)


def settle(objects: Objects, key: Key) -> None:
    """Let the controllers do their part after an object was stored."""
    resource, namespace, _ = key
    found = objects.objects.get(key)
    if not found:
        return
    if resource in ("deployments", "statefulsets", "daemonsets"):
        settle_workload(objects, key)
    elif resource == "jobs":
        set_status(objects, key, {"succeeded": 1, "conditions": [condition("Complete")], "completionTime": now()})
    elif resource == "persistentvolumeclaims":
        set_status(objects, key, {"phase": "Bound"})
    elif resource == "services" and found["spec"].get("type") == "LoadBalancer":
        node = objects.find("nodes")[0]["status"]["addresses"][0]["address"]
        set_status(objects, key, {"loadBalancer": {"ingress": [{"ip": node}]}})
    elif resource == "namespaces" and ("serviceaccounts", key[2], "default") not in objects.objects:
        ensure(objects, "serviceaccounts", key[2], "default", "v1", "ServiceAccount", {})
    if resource in ("services", "pods", "deployments", "statefulsets", "daemonsets"):
        for service in objects.find("services", namespace):
            settle_endpoints(objects, service)


def set_status(objects: Objects, key: Key, wanted: Object) -> None:
    """Set an object's status, if it does not say the same already."""
    found = objects.get(key)
    old = found.get("status", {})
    if timeless(old) != timeless(wanted):
        objects.put(key, {**found, "status": wanted})


def timeless(value: Any) -> Any:
    """Return a status without its times."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if not key.endswith("Time")}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def settle_workload(objects: Objects, key: Key) -> None:
    """Give a workload its pods, all of them ready."""
    resource, namespace, name = key
    found = objects.get(key)
    spec, template = found["spec"], found["spec"]["template"]
    count = 1 if resource == "daemonsets" else spec.get("replicas", 1)
    owner = {
        "apiVersion": found["apiVersion"],
        "kind": found["kind"],
        "name": name,
        "uid": found["metadata"]["uid"],
        "controller": True,
    }
    mine = [
        pod
        for pod in objects.find("pods", namespace)
        if owner["uid"] in [each["uid"] for each in pod["metadata"].get("ownerReferences", [])]
    ]
    for pod in mine:
        if int(pod["metadata"]["name"].rsplit("-", 1)[1]) >= count:
            objects.remove(("pods", namespace, pod["metadata"]["name"]))
    for number in range(count):
        meta = {
            **template.get("metadata", {}),
            "name": f"{name}-{number}",
            "namespace": namespace,
            "ownerReferences": [owner],
        }
        containers = [
            {
                "name": each["name"],
                "ready": True,
                "restartCount": 0,
                "image": each.get("image"),
                "imageID": "",
                "state": {"running": {"startedAt": now()}},
            }
            for each in template["spec"].get("containers", [])
        ]
        state = {
            "phase": "Running",
            "podIP": f"10.42.0.{10 + number}",
            "conditions": [condition("Ready"), condition("PodScheduled")],
            "containerStatuses": containers,
        }
        before = objects.objects.get(("pods", namespace, meta["name"]), {})
        if before.get("spec") != template["spec"]:
            objects.put(
                ("pods", namespace, meta["name"]),
                {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"], "status": state},
            )
    numbers = {"observedGeneration": objects.get(key)["metadata"]["generation"]}
    names: tuple[str, ...] = ("replicas", "readyReplicas", "availableReplicas", "updatedReplicas")
    if resource == "daemonsets":
        names = (
            "desiredNumberScheduled",
            "numberReady",
            "numberAvailable",
            "updatedNumberScheduled",
            "currentNumberScheduled",
        )
    numbers |= dict.fromkeys(names, count)
    extra = (
        {"currentRevision": "1", "updateRevision": "1", "currentReplicas": count} if resource == "statefulsets" else {}
    )
    conditions = [
        condition("Available", reason="MinimumReplicasAvailable"),
        condition("Progressing", reason="NewReplicaSetAvailable"),
    ]
    set_status(objects, key, {**numbers, **extra, "conditions": conditions})


def settle_endpoints(objects: Objects, service: Object) -> None:
    """Say which pods stand behind a service."""
    meta, selector = service["metadata"], service["spec"].get("selector")
    if not selector:
        return
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    ends = [
        {"addresses": [pod["status"]["podIP"]], "conditions": {"ready": True}}
        for pod in objects.find("pods", meta["namespace"], labels)
    ]
    owner = {"apiVersion": "v1", "kind": "Service", "name": meta["name"], "uid": meta["uid"]}
    wanted = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{meta['name']}-auto",
            "namespace": meta["namespace"],
            "ownerReferences": [owner],
            "labels": {"kubernetes.io/service-name": meta["name"]},
        },
        "addressType": "IPv4",
        "endpoints": ends,
    }
    objects.put(("endpointslices", meta["namespace"], f"{meta['name']}-auto"), wanted)
