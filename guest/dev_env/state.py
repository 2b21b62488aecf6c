"""What there is and how it is: `status`, `services` and `version`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dev_env import RELEASE, forwards
from dev_env.api import Api
from dev_env.bounds import read_text
from dev_env.charts import installed, pod_ready
from dev_env.forwards import HTTP, HTTPS, Forwards
from dev_env.names import TCP_RANGE, given_ports, host_of, http_port, is_wanted, tcp_ports
from dev_env.printable import printable, shortened
from dev_env.ready import CLUSTER, Watch, k3s_version, told
from dev_env.tools import ask, run

MOST_CELL = 1000
"""Characters of a cell: a path or a list of an image's names, and not what fills a screen."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines with columns one under the other; a cell is a line of bounded length."""
    rows = [[_cell(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell(text: str) -> str:
    return shortened(printable(text), MOST_CELL).replace("\n", " ")


def services() -> tuple[list[list[str]], list[str]]:
    """Return name, namespace, address on the host and state of every service, with a heading; and notes on these."""
    api = Api()
    return listed(api.items("Service"), api.items("EndpointSlice"), forwards.read())


def listed(
    every: Sequence[dict[str, Any]], slices: Sequence[dict[str, Any]], found: Forwards
) -> tuple[list[list[str]], list[str]]:
    """Return what `services` does, for these services and forwards; pure."""
    numbers = given_ports(every)
    rows = [["SERVICE", "NAMESPACE", "ADDRESS ON YOUR COMPUTER", "STATE"]]
    lacking = set()
    for service in filter(is_wanted, every):
        meta = service["metadata"]
        state = _endpoints(meta, slices)
        for guest, address in _addresses(service, numbers, found.ports):
            rows.append(["", "", address, ""] if guest == HTTPS else [meta["name"], meta["namespace"], address, state])
            if guest and guest not in found.ports:
                lacking.add(guest)
    return rows, list(forwards.notes(found, lacking))


def _addresses(
    service: dict[str, Any], numbers: Mapping[tuple[str, str, int], int], ports: Mapping[int, int]
) -> Iterator[tuple[int | None, str]]:
    """Yield the ports of this machine at which a service is, and where that is on the host.

    Args:
        ports: Those that are forwarded -> port on the host.
    """
    if http_port(service):
        host = host_of(service)
        for scheme, guest in (("http", HTTP), ("https", HTTPS)):
            lost = f"{scheme} to {host} is not forwarded"
            yield guest, f"{scheme}://{host}:{ports[guest]}" if guest in ports else lost
    meta = service["metadata"]
    for port in tcp_ports(service):
        number = numbers.get((meta["namespace"], meta["name"], port["port"]))
        address = f"none is free in {TCP_RANGE[0]}-{TCP_RANGE[-1]}"
        if number:
            address = f"localhost:{ports[number]}" if number in ports else f"{number} is not forwarded"
        yield number, f"{address} (port {port['port']})"


def _endpoints(meta: dict[str, Any], slices: Sequence[dict[str, Any]]) -> str:
    mine = [
        each
        for each in slices
        if each["metadata"]["namespace"] == meta["namespace"]
        and each["metadata"].get("labels", {}).get("kubernetes.io/service-name") == meta["name"]
    ]
    ends = [end for each in mine for end in each.get("endpoints") or []]
    ready = sum(end.get("conditions", {}).get("ready") is not False for end in ends)
    return f"ready ({ready})" if ready else "no pod is ready"


def status() -> list[str]:
    """Return lines that say how the environment is."""
    seen = Watch().look()
    lines = list(told(seen))
    if seen.lacks[CLUSTER]:
        return lines
    lines.append(forwards.summary(forwards.read()))
    disk = shutil.disk_usage("/")
    lines.append(f"disk: {disk.free >> 30} of {disk.total >> 30} GiB free")
    found = installed()
    lines.append(
        "charts: "
        + (
            ", ".join(f"{each['name']} ({each['chart']}, {each['status']})" for each in found)
            or "none; try `dev-env up hello`"
        )
    )
    pods = Api().items("Pod")
    bad = [pod for pod in pods if not pod_ready(pod) and pod.get("status", {}).get("phase") != "Succeeded"]
    lines.append(f"pods: {len(pods) - len(bad)} of {len(pods)} well")
    lines += [f"  {pod['metadata']['namespace']}/{pod['metadata']['name']}: {_why(pod)}" for pod in bad]
    return lines


def _why(pod: dict[str, Any]) -> str:
    """Return why a pod is not ready, in Kubernetes' word for it."""
    state = pod.get("status", {})
    for container in [*state.get("initContainerStatuses", []), *state.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return str(waiting.get("reason") or "waiting")
    return str(state.get("phase", "unknown"))


def version() -> dict[str, str]:
    """Return the image and the versions of what runs in it."""
    facts = json.loads(read_text(RELEASE)) if RELEASE.exists() else {}
    client = ask(["kubectl", "version", "--client", "--output=json"])["clientVersion"]["gitVersion"]
    return {
        "image": str(facts.get("image", "unknown")),
        "build": str(facts.get("build", "unknown")),
        "k3s": k3s_version(),
        "kubectl": str(client),
        "helm": run(["helm", "version", "--template={{.Version}}"]),
    }
