"""Names and ports of services, as the host's browser and tools reach them.

Browsers and most tools take every name below `.localhost` for the host itself (RFC 6761), where a port is forwarded to
the machine. There an Ingress for each service with an http port leads on; other TCP ports become NodePorts of a range
that is forwarded too. Ingress and NodePort belong to their service: Kubernetes removes them with it.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dev_env import MANAGED, OURS, SYSTEM_NAMESPACES, Failure
from dev_env.api import Api, Refused

HTTP_PORT, HTTPS_PORT = 8080, 8443
"""On the host."""
HTTP_NUMBERS = frozenset({80, 3000, 4200, 5000, 5173, 8000, 8080, 8888})
TCP_RANGE = range(31000, 31020)
"""NodePorts that are forwarded from the host under the same numbers."""
OFF = "dev-env/names"
"""Annotation of a service: `off` leaves it alone."""

SUFFIX = "-dev-env"
NAME_LENGTH = 63

SETTLE_SECONDS = 0.3
RETRY_SECONDS = 2.0
"""Doubled as long as something is refused."""
RESYNC_SECONDS = 60.0

Object = dict[str, Any]


def host_of(service: Mapping[str, Any]) -> str:
    """Return the name under which the host reaches a service."""
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    return f"{name}.localhost" if namespace == "default" else f"{name}.{namespace}.localhost"


def is_wanted(service: Mapping[str, Any]) -> bool:
    """Tell whether a service is to be reached from the host: not the system's, not our own, not another host's."""
    meta, spec = service["metadata"], service["spec"]
    return (
        meta["namespace"] not in SYSTEM_NAMESPACES
        and (meta["namespace"], meta["name"]) != ("default", "kubernetes")
        and meta.get("labels", {}).get(MANAGED) != OURS
        and meta.get("annotations", {}).get(OFF) != "off"
        and "deletionTimestamp" not in meta
        and spec.get("type") != "ExternalName"
    )


def http_port(service: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the port of a service that speaks http: by its protocol, its name or its number, in this order."""
    ports = [port for port in service["spec"].get("ports", []) if port.get("protocol", "TCP") == "TCP"]
    tests: tuple[Callable[[Mapping[str, Any]], bool], ...] = (
        lambda port: port.get("appProtocol") in ("http", "kubernetes.io/ws"),
        lambda port: str(port.get("name", "")).split("-")[0] in ("http", "web"),
        lambda port: port["port"] in HTTP_NUMBERS and not port.get("appProtocol"),
    )
    return next((port for test in tests for port in ports if test(port)), None)


def tcp_ports(service: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the ports of a service that get a number on the host: TCP, and not the one that speaks http."""
    http = http_port(service)
    ports = service["spec"].get("ports", [])
    if not service["spec"].get("selector"):
        return []
    return [port for port in ports if port.get("protocol", "TCP") == "TCP" and port is not http]


def desired(services: Sequence[Object], ingresses: Sequence[Object]) -> list[Object]:
    """Return the Ingresses and NodePort services that should be there; pure.

    Args:
        services: All, our own among them: a port that was given stays.
        ingresses: All; a host that a chart's own Ingress takes is left to it.
    """
    taken_hosts = {
        rule.get("host")
        for ingress in ingresses
        if ingress["metadata"].get("labels", {}).get(MANAGED) != OURS
        for rule in ingress["spec"].get("rules", [])
    }
    numbers = given_ports(services)
    found = []
    for service in sorted(filter(is_wanted, services), key=_identity):
        port = http_port(service)
        if port and host_of(service) not in taken_hosts:
            found.append(ingress_of(service, port))
        ports = tcp_ports(service)
        for each in ports:
            key = (*_identity(service), each["port"])
            if key not in numbers:
                free = free_number(key, set(numbers.values()))
                if free is None:
                    print(f"{'/'.join(map(str, key))}: all ports of {TCP_RANGE} are taken", file=sys.stderr)
                    continue
                numbers[key] = free
        held = [(each, numbers[key]) for each in ports if (key := (*_identity(service), each["port"])) in numbers]
        if held:
            found.append(node_port_of(service, held))
    return found


def given_ports(services: Sequence[Object]) -> dict[tuple[str, str, int], int]:
    """Return (namespace, service, port) -> NodePort for what was given before, and for other services in the range."""
    given = {}
    for service in services:
        namespace, name = _identity(service)
        if service["metadata"].get("labels", {}).get(MANAGED) == OURS:
            name = (service["metadata"].get("ownerReferences") or [service["metadata"]])[0]["name"]
        for port in service["spec"].get("ports", []):
            if port.get("nodePort") in TCP_RANGE:
                given[namespace, name, port["port"]] = port["nodePort"]
    return given


def free_number(key: tuple[str, str, int], taken: set[int]) -> int | None:
    """Return a port of the range: the same for the same service on every machine, if nothing else has it."""
    start = int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:4], "big")
    order = (TCP_RANGE[(start + step) % len(TCP_RANGE)] for step in range(len(TCP_RANGE)))
    return next((number for number in order if number not in taken), None)


def ingress_of(service: Object, port: Mapping[str, Any]) -> Object:
    """Return the Ingress of a service; Traefik serves it by http and, with a certificate of its own, by https."""
    backend = {"service": {"name": service["metadata"]["name"], "port": {"number": port["port"]}}}
    meta = _metadata(service)
    meta["annotations"] = {"traefik.ingress.kubernetes.io/router.entrypoints": "web,websecure"}
    rule = {"host": host_of(service), "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": meta,
        "spec": {"ingressClassName": "traefik", "rules": [rule]},
    }


def node_port_of(service: Object, ports: Sequence[tuple[Mapping[str, Any], int]]) -> Object:
    """Return the service of type NodePort that leads to the same pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service),
        "spec": {
            "type": "NodePort",
            "selector": service["spec"]["selector"],
            "ports": [
                {
                    "name": port.get("name") or f"port-{port['port']}",
                    "port": port["port"],
                    "targetPort": port.get("targetPort", port["port"]),
                    "nodePort": number,
                    "protocol": "TCP",
                }
                for port, number in ports
            ],
        },
    }


def _identity(service: Mapping[str, Any]) -> tuple[str, str]:
    return service["metadata"]["namespace"], service["metadata"]["name"]


def _metadata(service: Object) -> Object:
    meta = service["metadata"]
    owner = {"apiVersion": "v1", "kind": "Service", "name": meta["name"], "uid": meta["uid"]}
    return {
        "name": _name(meta["name"]),
        "namespace": meta["namespace"],
        "labels": {MANAGED: OURS},
        "ownerReferences": [owner],
    }


def _name(service: str) -> str:
    """Return what our objects for a service are called: at most as long as a service's name may be."""
    if len(service) + len(SUFFIX) > NAME_LENGTH:
        digest = hashlib.sha256(service.encode()).hexdigest()[:8]
        service = f"{service[: NAME_LENGTH - len(SUFFIX) - 9]}-{digest}"
    return service + SUFFIX


def reconcile(api: Api) -> list[str]:
    """Make what is desired, remove what is not any more; returns what was changed.

    Raises:
        Refused: The cluster refuses some of it (a namespace that is being deleted, a port that another program took in
            the meantime); all else is done.
        Failure: It does not answer.
    """
    services, ingresses = api.items("Service"), api.items("Ingress")
    wanted = {(each["kind"], *_identity(each)): each for each in desired(services, ingresses)}
    ours = {
        (each["kind"], *_identity(each)): each
        for each in [*services, *ingresses]
        if each["metadata"].get("labels", {}).get(MANAGED) == OURS
    }
    changed = [each for key, each in wanted.items() if not _same(each, ours.get(key))]
    gone = [each for key, each in ours.items() if key not in wanted]
    refused = []
    for act, each in [*((api.apply, each) for each in changed), *((api.delete, each) for each in gone)]:
        try:
            act(each)
        except Refused as error:
            refused.append(str(error))
    if refused:
        raise Refused("\n".join(refused))
    return [*(f"{each['kind']} {'/'.join(_identity(each))}" for each in changed),
            *(f"removed {each['kind']} {'/'.join(_identity(each))}" for each in gone)]  # fmt: skip


def _same(wanted: object, found: object) -> bool:
    """Tell whether an object holds all that is wanted of it; the API server adds defaults."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(_same(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list):
        return len(wanted) == len(found) and all(map(_same, wanted, found))
    return wanted == found


def watch() -> None:
    """Keep names and ports as desired, until killed: at every change of a service or an Ingress, and now and then."""
    changed = threading.Event()
    for kind in ("Service", "Ingress"):
        threading.Thread(target=_watch_kind, args=(kind, changed), daemon=True).start()
    pause = RETRY_SECONDS
    while True:
        changed.wait(timeout=RESYNC_SECONDS)
        # More often come together.
        time.sleep(SETTLE_SECONDS)
        changed.clear()
        try:
            for line in reconcile(Api()):
                print(line, flush=True)
            pause = RETRY_SECONDS
        except Failure as error:
            print(f"{error}\ntrying again in {pause:.0f} s", file=sys.stderr, flush=True)
            threading.Timer(pause, changed.set).start()
            pause = min(2 * pause, RESYNC_SECONDS)


def _watch_kind(kind: str, changed: threading.Event) -> None:
    while True:
        try:
            for _ in Api().changes(kind):
                changed.set()
        except Failure:
            # Not there before it has started; what was missed is seen when the next watch begins.
            time.sleep(RETRY_SECONDS)
