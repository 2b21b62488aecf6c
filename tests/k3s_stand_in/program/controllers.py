"""What controllers make of objects: workloads get pods, services get endpoints. The kubelet says how the pods are."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.k3s_stand_in.program.admission import admit
from tests.k3s_stand_in.program.objects import Key, Object, Objects, now
from tests.k3s_stand_in.program.services import is_ready, pods_of

WORKLOADS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}
TEMPLATE = "pod-template-hash"


def condition(kind: str, good: bool = True, reason: str = "", message: str = "") -> Object:
    """Return a condition of a status."""
    found = {"type": kind, "status": str(good), "lastTransitionTime": now(), "lastUpdateTime": now()}
    return {**found, **({"reason": reason} if reason else {}), **({"message": message} if message else {})}


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


def settle(objects: Objects, key: Key) -> None:
    """Let the controllers do their part after an object was stored or removed."""
    resource, namespace, _ = key
    found = objects.objects.get(key)
    if found and resource in WORKLOADS.values():
        settle_workload(objects, key)
    elif found and resource == "jobs":
        set_status(objects, key, {"succeeded": 1, "conditions": [condition("Complete")], "completionTime": now()})
    elif found and resource == "persistentvolumeclaims":
        set_status(objects, key, {"phase": "Bound"})
    elif found and resource == "services" and found["spec"].get("type") == "LoadBalancer":
        node = objects.find("nodes")[0]["status"]["addresses"][0]["address"]
        set_status(objects, key, {"loadBalancer": {"ingress": [{"ip": node}]}})
    elif found and resource == "namespaces":
        ensure(objects, "serviceaccounts", key[2], "default", "v1", "ServiceAccount", {})
    if resource in ("services", "pods", *WORKLOADS.values()):
        for service in objects.find("services", namespace):
            settle_endpoints(objects, service)


def settle_owners(objects: Objects, pod: Object) -> None:
    """Let those see a pod that count it: it has changed, or is gone."""
    meta = pod["metadata"]
    for owner in meta.get("ownerReferences", []):
        if owner["kind"] in WORKLOADS:
            settle(objects, (WORKLOADS[owner["kind"]], meta["namespace"], owner["name"]))
    settle(objects, ("pods", meta["namespace"], meta["name"]))


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
    """Give a workload its pods, new ones for another template, and count them."""
    resource, namespace, name = key
    found = objects.get(key)
    template = found["spec"]["template"]
    count = 1 if resource == "daemonsets" else found["spec"].get("replicas", 1)
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
    wanted = {f"{name}-{number}" for number in range(count)}
    uid = found["metadata"]["uid"]
    for pod in objects.find("pods", namespace):
        meta = pod["metadata"]
        mine = uid in [each["uid"] for each in meta.get("ownerReferences", [])]
        if mine and (meta["name"] not in wanted or meta["labels"].get(TEMPLATE) != digest):
            objects.remove(("pods", namespace, meta["name"]))
    owner = {"apiVersion": found["apiVersion"], "kind": found["kind"], "name": name, "uid": uid, "controller": True}
    for pod_name in sorted(wanted):
        if ("pods", namespace, pod_name) not in objects.objects:
            meta = template.get("metadata", {})
            meta = {**meta, "labels": {**(meta.get("labels") or {}), TEMPLATE: digest}, "ownerReferences": [owner],
                    "name": pod_name, "namespace": namespace}  # fmt: skip
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
            objects.put(("pods", namespace, pod_name), {**pod, "status": {"phase": "Pending"}})
    ready = sum(is_ready(objects.objects["pods", namespace, each]) for each in wanted)
    count_pods(objects, key, count, ready)


def count_pods(objects: Objects, key: Key, count: int, ready: int) -> None:
    """Say how many pods a workload has, and whether they are enough."""
    numbers: Object = {"observedGeneration": objects.get(key)["metadata"]["generation"]}
    if key[0] == "daemonsets":
        numbers |= dict.fromkeys(("desiredNumberScheduled", "updatedNumberScheduled", "currentNumberScheduled"), count)
        numbers |= {"numberReady": ready, "numberAvailable": ready, "numberUnavailable": count - ready}
    else:
        numbers |= {"replicas": count, "updatedReplicas": count, "readyReplicas": ready, "availableReplicas": ready}
    if key[0] == "statefulsets":
        numbers |= {"currentRevision": "1", "updateRevision": "1", "currentReplicas": count}
    good = ready == count
    reasons = ("MinimumReplicasAvailable", "NewReplicaSetAvailable") if good else (
        "MinimumReplicasUnavailable", "ReplicaSetUpdated")  # fmt: skip
    conditions = [condition("Available", good, reasons[0]), condition("Progressing", reason=reasons[1])]
    set_status(objects, key, {**numbers, "conditions": conditions})


def settle_endpoints(objects: Objects, service: Object) -> None:
    """Say which pods stand behind a service."""
    meta = service["metadata"]
    if not service["spec"].get("selector"):
        return
    ends = [
        {"addresses": [pod["status"]["podIP"]], "conditions": {"ready": is_ready(pod)}}
        for pod in pods_of(objects, service)
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
