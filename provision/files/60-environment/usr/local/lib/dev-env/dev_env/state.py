"""What there is and how it is: `status`, `services`, `doctor`, `version`, and waiting for the cluster."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dev_env import KUBECONFIG, RELEASE, Failure
from dev_env.charts import installed, pod_ready
from dev_env.names import HTTP_PORT, HTTPS_PORT, TCP_RANGE, given_ports, host_of, http_port, is_wanted, tcp_ports
from dev_env.tools import ask, items, run

PARTS = {"coredns": "coredns", "traefik": "traefik", "metrics-server": "metrics-server",
         "local-path-provisioner": "local-storage"}  # fmt: skip
"""Deployments of k3s itself, and how its setting `disable` calls them."""
SETTINGS = Path("/etc/rancher/k3s/config.yaml")
BOOT = Path("/proc/sys/kernel/random/boot_id")
READY = Path("/run/dev-env/ready.json")
WAIT_SECONDS = 1100.0
PROBE_SECONDS = 5.0
LEAST_FREE_BYTES = 2 << 30
LEAST_MEMORY_KIB = 1800 << 10


def missing() -> list[str]:
    """Return what the cluster lacks to be ready; empty when it is.

    After a start of the machine or of k3s, the API tells of what was before until the node reports again. So it must
    have reported since, with the version that is here, and the way that names take must be open.

    Raises:
        Failure: It does not answer.
    """
    run(["kubectl", "get", "--raw=/readyz"], seconds=20)
    found: dict[str, dict[str, Any]] = {"Node": {}, "Deployment": {}, "Service": {}}
    # One command for all: each costs a second on a machine that is starting.
    for each in items("nodes,deployments,services", namespace="kube-system"):
        found[each["kind"]][each["metadata"]["name"]] = each
    nodes = list(found["Node"].values())
    lacks = _node_lacks(nodes)
    lacks += [f"node {node['metadata']['name']} is not ready" for node in nodes if not pod_ready(node)]
    disabled = _disabled()
    for part in (part for part, name in PARTS.items() if name not in disabled):
        if not found["Deployment"].get(part, {}).get("status", {}).get("availableReplicas"):
            lacks.append(f"{part} is not up")
    return lacks if lacks or disabled & {"traefik", "servicelb"} else _names_lack(found["Service"].get("traefik", {}))


def _node_lacks(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Return why no node is this machine, as it runs now; nothing if one is."""
    reports = [node.get("status", {}).get("nodeInfo", {}) for node in nodes]
    mine = [each for each in reports if each.get("bootID") == BOOT.read_text().strip()]
    if not mine:
        return ["the node has not reported since the machine was switched on"]
    here = k3s_version()
    return [f"the node still runs {each['kubeletVersion']}" for each in mine if each["kubeletVersion"] != here]


def _names_lack(service: dict[str, Any]) -> list[str]:
    """Return why no name of a service can be reached: Traefik, behind this one, must answer by http."""
    ends = service.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    addresses = [end["ip"] for end in ends if "ip" in end]
    ports = [port["port"] for port in service.get("spec", {}).get("ports", []) if port.get("name") == "web"]
    if not addresses or not ports:
        return ["traefik has no address yet"]
    connection = http.client.HTTPConnection(addresses[0], ports[0], timeout=PROBE_SECONDS)
    try:
        # It says 404, since there is no such name: it is there.
        connection.request("GET", "/", headers={"Host": "dev-env.localhost"})
        connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        return [f"traefik does not answer yet ({error})"]
    finally:
        connection.close()
    return []


def _disabled() -> set[str]:
    """Return all words in the settings of k3s; those of PARTS stand there if the part is left out."""
    lines = SETTINGS.read_text().splitlines() if SETTINGS.exists() else []
    return {word for line in lines if not line.lstrip().startswith("#") for word in re.findall(r"[a-z-]+", line)}


def wait(report: Callable[[str], None], seconds: float = WAIT_SECONDS) -> None:
    """Wait until the cluster is ready.

    Args:
        seconds: How long at most.

    Raises:
        Failure: It was not ready in time.
    """
    end = time.monotonic() + seconds
    last = ""
    while True:
        try:
            lacks = missing()
        except Failure as error:
            lacks = [str(error).splitlines()[-1]]
        if not lacks:
            break
        if time.monotonic() > end:
            raise Failure(f"the cluster is not ready: {'; '.join(lacks)}", "`dev-env doctor`, `journalctl -u k3s`")
        if lacks[0] != last:
            last = lacks[0]
            report(f"waiting: {last}")
        time.sleep(2)


def note_ready() -> float:
    """Note when the cluster was ready first since the machine was switched on; returns the seconds that it took."""
    if not READY.exists():
        READY.parent.mkdir(exist_ok=True)
        READY.write_text(json.dumps({"seconds_since_boot": round(uptime(), 1)}) + "\n")
    return float(json.loads(READY.read_text())["seconds_since_boot"])


def uptime() -> float:
    """Return the seconds since the machine was switched on."""
    return float(Path("/proc/uptime").read_text().split()[0])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines with columns one under the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def services() -> list[list[str]]:
    """Return name, namespace, address on the host and state of every service, with a heading."""
    every = items("services")
    numbers = given_ports(every)
    slices = items("endpointslices")
    rows = [["SERVICE", "NAMESPACE", "ADDRESS ON YOUR COMPUTER", "STATE"]]
    for service in filter(is_wanted, every):
        meta = service["metadata"]
        state = _endpoints(meta, slices)
        if http_port(service):
            host = host_of(service)
            rows.append([meta["name"], meta["namespace"], f"http://{host}:{HTTP_PORT}", state])
            rows.append(["", "", f"https://{host}:{HTTPS_PORT}", ""])
        for port in tcp_ports(service):
            number = numbers.get((meta["namespace"], meta["name"], port["port"]))
            address = f"localhost:{number}" if number else f"none is free in {TCP_RANGE[0]}-{TCP_RANGE[-1]}"
            rows.append([meta["name"], meta["namespace"], f"{address} (port {port['port']})", state])
    return rows


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
    """Return lines that say how the environment is.

    Raises:
        Failure: The cluster does not answer.
    """
    lacks = missing()
    lines = [f"not ready yet: {'; '.join(lacks)}" if lacks else "ready"]
    if READY.exists():
        lines[0] += f" (after {json.loads(READY.read_text())['seconds_since_boot']:.0f} s)"
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
    pods = items("pods")
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


def k3s_version() -> str:
    """Return the version of the program k3s that is here."""
    return run(["k3s", "--version"]).split()[2]


def version() -> dict[str, str]:
    """Return the image and the versions of what runs in it."""
    facts = json.loads(RELEASE.read_text()) if RELEASE.exists() else {}
    client = ask(["kubectl", "version", "--client", "--output=json"])["clientVersion"]["gitVersion"]
    return {
        "image": str(facts.get("image", "unknown")),
        "build": str(facts.get("build", "unknown")),
        "k3s": k3s_version(),
        "kubectl": str(client),
        "helm": run(["helm", "version", "--template={{.Version}}"]),
    }


def doctor() -> Iterator[tuple[str, str, str]]:
    """Yield what is examined, the fault or nothing, and what to do about it."""
    for name, check, remedy in (
        ("the service k3s runs", _unit("k3s.service"), "`sudo systemctl restart k3s`, `journalctl -u k3s`"),
        ("names are kept up to date", _unit("dev-env-names.service"), "`sudo systemctl restart dev-env-names`"),
        ("you may use the cluster", _kubeconfig, "log in as the user dev"),
        ("the cluster answers and is ready", _cluster, "wait a minute; then `journalctl -u k3s`"),
        (
            "the disk has room",
            _disk,
            "remove what is large: `sudo k3s crictl rmi --prune`, `du -xh / | sort -h | tail`",
        ),
        ("there is enough memory", _memory, "give the machine 4 GiB or more"),
    ):
        try:
            fault = check()
        except Failure as error:
            fault = str(error).splitlines()[-1]
        yield name, fault, remedy


def _unit(unit: str) -> Callable[[], str]:
    def check() -> str:
        done = subprocess.run(["systemctl", "is-active", unit], capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else f"{unit} is {done.stdout.strip()}"

    return check


def _kubeconfig() -> str:
    try:
        KUBECONFIG.read_bytes()
    except OSError as error:
        return f"{KUBECONFIG}: {error.strerror}"
    return ""


def _cluster() -> str:
    return "; ".join(missing())


def _disk() -> str:
    free = shutil.disk_usage("/").free
    return "" if free >= LEAST_FREE_BYTES else f"{free >> 20} MiB are free"


def _memory() -> str:
    total = int(Path("/proc/meminfo").read_text().split()[1])
    return "" if total >= LEAST_MEMORY_KIB else f"the machine has {total >> 10} MiB"
