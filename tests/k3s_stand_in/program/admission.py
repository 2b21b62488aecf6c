"""What the API server fills in before it stores an object, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator

from tests.k3s_stand_in.program.objects import GROUP_OF, RESOURCES, Key, Object, Objects, Refused, qualified

NODE_PORTS = range(30000, 32768)


def admit(objects: Objects, key: Key, wanted: Object) -> None:
    """Fill in what is left out.

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
    if resource == "pods":
        admit_pod(key, spec, "spec")
    elif "template" in spec:
        admit_pod(key, spec["template"].get("spec", {}), "spec.template.spec")


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
                raise invalid(key, f"spec.ports[0].nodePort: Invalid value: {number}: {text}")
            port["nodePort"] = number
            taken.add(number)


def admit_pod(key: Key, spec: Object, place: str) -> None:
    """Refuse a pod with nothing in it, and what a recursive read-only mount cannot be together with.

    Raises:
        Refused: It is so.
    """
    if not spec.get("containers"):
        raise invalid(key, f"{place}.containers: Required value")
    for where, mount in mounts(spec, place):
        if mount.get("recursiveReadOnly", "Disabled") == "Disabled":
            continue
        if not mount.get("readOnly"):
            raise invalid(key, f"{where}.recursiveReadOnly: Forbidden: may only be specified when readOnly is true")
        if mount.get("mountPropagation", "None") != "None":
            text = "may only be specified when mountPropagation is None or not specified"
            raise invalid(key, f"{where}.recursiveReadOnly: Forbidden: {text}")


def mounts(spec: Object, place: str) -> Iterator[tuple[str, Object]]:
    """Yield the mounts of all containers, and where they stand."""
    for kind in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(kind) or []):
            for index, mount in enumerate(container.get("volumeMounts") or []):
                yield f"{place}.{kind}[{number}].volumeMounts[{index}]", mount


def invalid(key: Key, what: str) -> Refused:
    """Return the answer for an object that is not valid."""
    kind, group = RESOURCES[GROUP_OF[key[0]]][key[0]][0], qualified(key[0]).partition(".")[2]
    return Refused(422, "Invalid", f'{kind}{"." if group else ""}{group} "{key[2]}" is invalid: {what}')
