"""Names and ports of services, as the host's browser and tools reach them.

Browsers and most tools take every name below `.localhost` for the host itself (RFC 6761), where a port is forwarded to
the machine. There an Ingress for each service with an http port leads on; other TCP ports become NodePorts of a range
that is forwarded too. Ingress and NodePort belong to their service: Kubernetes removes them with it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dev_env import MANAGED, OURS, SYSTEM_NAMESPACES
from dev_env.api import Api, Refused
from dev_env.console import say

HTTP_NUMBERS = frozenset({80, 3000, 4200, 5000, 5173, 8000, 8080, 8888})
TCP_RANGE = range(31000, 31020)
"""NodePorts that are forwarded from the host; forwards.py knows which of them, and from which port there."""
OFF = "dev-env/names"
"""Annotation of a service: `off` leaves it alone."""

SUFFIX = "-dev-env"
NAME_LENGTH = 63
TRIES, SETTLE_SECONDS = 3, 0.3

Object = dict[str, Any]
Identity = tuple[str, str, str]
"""(kind, namespace, name); a name alone may stand for several objects."""


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
        and _labels(service).get(MANAGED) != OURS
        and (meta.get("annotations") or {}).get(OFF) != "off"
        and "deletionTimestamp" not in meta
        and spec.get("type") != "ExternalName"
    )


def http_port(service: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the port of a service that speaks http: by its protocol, its name or its number, in this order."""
    ports = [port for port in _ports(service) if port.get("protocol", "TCP") == "TCP"]
    tests: tuple[Callable[[Mapping[str, Any]], bool], ...] = (
        lambda port: port.get("appProtocol") in ("http", "kubernetes.io/ws"),
        lambda port: str(port.get("name", "")).split("-")[0] in ("http", "web"),
        lambda port: port["port"] in HTTP_NUMBERS and not port.get("appProtocol"),
    )
    return next((port for test in tests for port in ports if test(port)), None)


def tcp_ports(service: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the ports of a service that get a number on the host: TCP, and not the one that speaks http."""
    http = http_port(service)
    if not service["spec"].get("selector"):
        return []
    return [port for port in _ports(service) if port.get("protocol", "TCP") == "TCP" and port is not http]


def is_ours(found: Mapping[str, Any]) -> bool:
    """Tell whether we made an object: it has our label, and the name and the owner that we gave it.

    What lacks one of these is somebody's, and neither changed nor removed.
    """
    owner = owner_of(found)
    return bool(owner) and _labels(found).get(MANAGED) == OURS and found["metadata"]["name"] in names_for(owner)


def owner_of(found: Mapping[str, Any]) -> str:
    """Return the service to which an object belongs; nothing if it belongs to none, or to more."""
    meta = found["metadata"]
    owners = meta.get("ownerReferences") or []
    one = len(owners) == 1 and owners[0].get("kind") == "Service" and meta["namespace"] not in SYSTEM_NAMESPACES
    return str(owners[0]["name"]) if one else ""


def desired(services: Sequence[Object], ingresses: Sequence[Object]) -> list[Object]:
    """Return the Ingresses and NodePort services that should be there; pure.

    Args:
        services: All, our own among them: a port that was given stays.
        ingresses: All; a host that a chart's own Ingress takes is left to it.
    """
    taken_hosts = {
        rule.get("host") for ingress in ingresses if not is_ours(ingress) for rule in ingress["spec"].get("rules") or []
    }
    taken = {
        *(("Service", *_identity(each)) for each in services if not is_ours(each)),
        *(("Ingress", *_identity(each)) for each in ingresses if not is_ours(each)),
    }
    numbers = given_ports(services)
    found = []
    for service in sorted(filter(is_wanted, services), key=_identity):
        port = http_port(service)
        if port and host_of(service) not in taken_hosts:
            found += _named(ingress_of(service, port), service, taken)
        if held := _held(service, numbers):
            found += _named(node_port_of(service, held), service, taken)
    return found


def _named(made: Object, service: Object, taken: set[Identity]) -> list[Object]:
    """Return an object of ours under a name that nobody else's has; nothing if there is none."""
    namespace, name = _identity(service)
    free = next((each for each in names_for(name) if (made["kind"], namespace, each) not in taken), "")
    if not free:
        say(f"{namespace}/{name}: no {made['kind']} is made for it: {', '.join(names_for(name))} are others'")
        return []
    taken.add((made["kind"], namespace, free))
    return [{**made, "metadata": {**made["metadata"], "name": free}}]


def _held(service: Object, numbers: dict[tuple[str, str, int], int]) -> list[tuple[Mapping[str, Any], int]]:
    """Return the ports of a service that have a number; numbers that are given now are noted."""
    held = []
    for port in tcp_ports(service):
        if port.get("nodePort") in TCP_RANGE:
            continue  # it is forwarded already
        key = (*_identity(service), port["port"])
        number = numbers.get(key) or free_number(key, set(numbers.values()))
        if number is None:
            say(f"{'/'.join(map(str, key))}: all ports from {TCP_RANGE[0]} to {TCP_RANGE[-1]} are taken")
        else:
            numbers[key] = number
            held.append((port, number))
    return held


def given_ports(services: Sequence[Object]) -> dict[tuple[str, str, int], int]:
    """Return (namespace, service, port) -> NodePort for what was given before, and for other services in the range."""
    given = {}
    for service in services:
        namespace, name = _identity(service)
        name = owner_of(service) if is_ours(service) else name
        for port in _ports(service):
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


def _labels(found: Mapping[str, Any]) -> Mapping[str, str]:
    return found["metadata"].get("labels") or {}


def _ports(service: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return service["spec"].get("ports") or []


def _identity(service: Mapping[str, Any]) -> tuple[str, str]:
    return service["metadata"].get("namespace", ""), service["metadata"]["name"]


def _metadata(service: Object) -> Object:
    meta = service["metadata"]
    owner = {"apiVersion": "v1", "kind": "Service", "name": meta["name"], "uid": meta["uid"]}
    return {
        "name": names_for(meta["name"])[0],
        "namespace": meta["namespace"],
        "labels": {MANAGED: OURS},
        "ownerReferences": [owner],
    }


def names_for(service: str) -> tuple[str, str]:
    """Return what our objects for a service are called: the usual name, and another where somebody has that.

    Neither is longer than a service's name may be.
    """
    digest = hashlib.sha256(service.encode()).hexdigest()[:8]
    other = f"{service[: NAME_LENGTH - len(SUFFIX) - 9]}-{digest}{SUFFIX}"
    return (service + SUFFIX if len(service) + len(SUFFIX) <= NAME_LENGTH else other), other


def reconcile(api: Api) -> list[str]:
    """Make what is desired, remove what is not any more; returns what was changed.

    Only what was ours when it was looked at, and has not changed since, is changed or removed.

    Raises:
        Refused: The cluster refuses some of it (a namespace that is being deleted, a port that another program took in
            the meantime, a name that is another's by now); all else is done.
        Failure: It does not answer.
    """
    done: list[str] = []
    for left in reversed(range(TRIES)):
        more, refused = _reconcile_once(api)
        done += more
        if not refused:
            break
        if not left:
            raise Refused("\n".join(refused))
        # `up` and the service of the system may both have done it: the next look tells.
        time.sleep(SETTLE_SECONDS)
    return done


def _reconcile_once(api: Api) -> tuple[list[str], list[str]]:
    """Return what was changed, and what was refused."""
    services, ingresses = api.items("Service"), api.items("Ingress")
    wanted = {_key(each): each for each in desired(services, ingresses)}
    ours = {_key(each): each for each in [*services, *ingresses] if is_ours(each)}
    steps: list[tuple[str, Callable[[], object]]] = [
        # First: what goes sets ports free that others may get.
        (f"removed {told(key)}", partial(api.delete, each))
        for key, each in ours.items()
        if key not in wanted
    ]
    for key, each in wanted.items():
        if key not in ours:
            steps.append((told(key), partial(api.create, each)))
        elif not _same(each, ours[key]):
            steps.append((told(key), partial(api.replace, _over(ours[key], each))))
    done, refused = [], []
    for text, act in steps:
        try:
            act()
            done.append(text)
        except Refused as error:
            refused.append(f"{text}: {error}")
    return done, refused


def told(key: Identity) -> str:
    """Return an object as people name it."""
    return f"{key[0]} {key[1]}/{key[2]}"


def _key(found: Object) -> Identity:
    return (found["kind"], *_identity(found))


def _over(found: Object, wanted: Object) -> Object:
    """Return an object with what is wanted of it; what others set on it stays."""
    meta, more = found["metadata"], wanted["metadata"]
    merged = {**meta, **more}
    for key in ("labels", "annotations"):
        merged[key] = {**(meta.get(key) or {}), **(more.get(key) or {})}
    return {**found, **wanted, "metadata": merged, "spec": {**found["spec"], **wanted["spec"]}}


def _same(wanted: object, found: object) -> bool:
    """Tell whether an object holds all that is wanted of it; the API server adds defaults."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(_same(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(found, list):
        return len(wanted) == len(found) and all(map(_same, wanted, found))
    return wanted == found
