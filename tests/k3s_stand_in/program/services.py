"""What stands behind a service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.k3s_stand_in.program.objects import Object, Objects

SIMULATED = "Simulated"
"""The reason of conditions of a pod in which nothing runs."""


@dataclass(frozen=True)
class Backend:
    """A port of a pod.

    Attributes:
        simulated: Whether nothing runs in that pod.
    """

    address: str
    port: int
    simulated: bool


def backends(objects: Objects, service: Object, port: Object) -> list[Backend]:
    """Return where a port of a service leads to: ready pods only, names of ports taken from each pod."""
    found = []
    for pod in filter(is_ready, pods_of(objects, service)):
        number = port_number(pod, port.get("targetPort") or port["port"])
        if number:
            found.append(Backend(pod["status"]["podIP"], number, is_simulated(pod)))
    return found


def pods_of(objects: Objects, service: Object) -> list[Object]:
    """Return the pods that a service selects, and that have an address."""
    selector = service["spec"].get("selector") or {}
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    pods = objects.find("pods", service["metadata"]["namespace"], labels) if labels else []
    return [pod for pod in pods if pod.get("status", {}).get("podIP")]


def port_number(pod: Object, port: int | str) -> int:
    """Return the number of a port of a pod, or 0 when no container has one of that name."""
    if isinstance(port, int) or port.isdigit():
        return int(port)
    return next((number for name, number in named_ports(pod) if name == port), 0)


def named_ports(pod: Object) -> Iterator[tuple[str, int]]:
    """Yield name and number of the ports of a pod's containers."""
    for container in pod["spec"].get("containers", []):
        for port in container.get("ports") or []:
            yield port.get("name", ""), port["containerPort"]


def ready_condition(pod: Object) -> Object:
    """Return the condition Ready of a pod, if it has one."""
    conditions = pod.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == "Ready"), {})


def is_ready(pod: Object) -> bool:
    """Tell whether a pod takes requests."""
    return bool(ready_condition(pod).get("status") == "True")


def is_simulated(pod: Object) -> bool:
    """Tell whether nothing runs in a pod."""
    return bool(ready_condition(pod).get("reason") == SIMULATED)
