"""Whether the environment is ready: what a start reaches, part by part, and waiting for it."""

from __future__ import annotations

import functools
import http.client
import json
import re
import secrets
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev_env import Failure, settings
from dev_env.api import Api, NotBegun
from dev_env.bounds import read_text
from dev_env.charts import pod_ready
from dev_env.tools import run

CLUSTER, NODE, POD_NAMES, HOST_NAMES = "cluster", "node", "names in pods", "names on your computer"
"""The parts, in the order in which a start reaches them."""
FURTHER = {"metrics-server": "metrics-server", "local-path-provisioner": "local-storage"}
"""Deployments of k3s that nothing waits for, and how its setting `disable` calls them."""
SETTINGS = settings.SETTINGS
BOOT = Path("/proc/sys/kernel/random/boot_id")
READY = Path("/run/dev-env/ready.json")
WAIT_SECONDS = 2700.0
"""An emulated machine on a busy host takes ten minutes; one that takes longer than this will not come up."""
PROBE_SECONDS = 5.0
POLL_SECONDS = 2.0
SAY_EVERY_SECONDS = 30.0
LINE = 100
"""Characters that fit a console, with what stands around them."""


@dataclass(frozen=True)
class Readiness:
    """How far the environment is.

    Attributes:
        lacks: Part -> what it lacks, nothing when it is there; in order, and no part that the settings leave out.
        starting: Further parts of the cluster that are not up yet.
    """

    lacks: Mapping[str, str]
    starting: Sequence[str] = ()

    @property
    def waiting(self) -> str:
        """The first part that is not there and what it lacks, in one line; nothing when all are."""
        return next((f"{part}: {lack}" for part, lack in self.lacks.items() if lack), "")


class Watch:
    """Looks how far the environment is, again and again, at the cost of no process."""

    def __init__(self) -> None:
        self._api: Api | None = None

    def look(self) -> Readiness:
        """Return how far the environment is, now."""
        found = settings.read(SETTINGS)
        parts = [CLUSTER, NODE]
        parts += [] if "coredns" in found.disabled else [POD_NAMES]
        parts += [] if found.disabled & {"traefik", "servicelb"} else [HOST_NAMES]
        lacks = dict.fromkeys(parts, "waits for the cluster")
        try:
            self._api = self._api or Api()
            lacks[CLUSTER] = _checks_lack(*self._api.answer("GET", "/readyz"))
            if lacks[CLUSTER]:
                return Readiness(lacks)
            services = {each["metadata"]["name"]: each for each in self._api.items("Service", "kube-system")}
            lacks[NODE] = _node_lacks(self._api.items("Node"))
            deployments = self._api.items("Deployment", "kube-system")
        except Failure as error:
            # The next look begins with the kubeconfig: k3s may have written another one.
            self._api = None
            return Readiness({**lacks, CLUSTER: _brief(error)})
        probes = {
            POD_NAMES: functools.partial(_pod_names_lack, services.get("kube-dns", {}), found.domain),
            HOST_NAMES: functools.partial(_host_names_lack, services.get("traefik", {})),
        }
        for part in lacks.keys() & probes:
            # Nothing answers before the node is there; each probe would wait its full time.
            lacks[part] = "waits for the node" if lacks[NODE] else probes[part]()
            if lacks[part] and found.unread:
                lacks[part] += f" ({found.unread[0]} cannot be read: it may leave this out)"
        up = {each["metadata"]["name"] for each in deployments if each.get("status", {}).get("availableReplicas")}
        starting = [name for name, word in FURTHER.items() if name not in up and word not in found.disabled]
        return Readiness(lacks, starting)


def _brief(error: Failure) -> str:
    """Return why something failed, in a line that fits a console."""
    line = (str(error).splitlines() or [""])[-1]
    return "it has not begun" if isinstance(error, NotBegun) else line[:LINE]


def _checks_lack(status: int, text: str) -> str:
    """Return how many of the API server's own checks are still missing; it lists each in a line."""
    if status == http.HTTPStatus.OK:
        return ""
    marks = re.findall(r"^\[([+-])\]", text, flags=re.MULTILINE)
    return f"{marks.count('+')} of {len(marks)} of its checks passed" if marks else f"it answers {status}"


def _node_lacks(nodes: Sequence[dict[str, Any]]) -> str:
    """Return why no node is this machine as it runs now.

    After a start of the machine or of k3s, the API tells of what was before until the node reports again. So it must
    have reported since, with the version that is here.
    """
    boot = BOOT.read_text().strip()
    mine = [node for node in nodes if node.get("status", {}).get("nodeInfo", {}).get("bootID") == boot]
    if not mine:
        return "it has not reported since the machine was switched on"
    here = k3s_version()
    for node in mine:
        version = node["status"]["nodeInfo"]["kubeletVersion"]
        if version != here:
            return f"it still runs {version}"
        if not pod_ready(node):
            return "it is not ready"
    return ""


def _pod_names_lack(service: dict[str, Any], domain: str) -> str:
    """Return why pods find no names: the cluster's name server must answer, through the network of pods."""
    spec = service.get("spec", {})
    ports = [port["port"] for port in spec.get("ports", []) if port.get("name") == "dns"]
    if not ports or not spec.get("clusterIP"):
        return "the name server is not installed yet"
    name = f"kubernetes.default.svc.{domain}"
    return "" if resolves(spec["clusterIP"], ports[0], name) else "the name server does not answer yet"


def resolves(address: str, port: int, name: str) -> bool:
    """Tell whether a name server knows an address of a name (RFC 1035, section 4)."""
    identity = secrets.token_bytes(2)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = identity + struct.pack(">5H", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
            asks.settimeout(PROBE_SECONDS)
            asks.connect((address, port))
            asks.send(question)
            answer = asks.recv(512)
    except OSError:
        return False
    flags, _, answers = struct.unpack_from(">3H", answer.ljust(8, b"\0"), 2)
    return answer[:2] == identity and not flags & 0xF and answers > 0


def _host_names_lack(service: dict[str, Any]) -> str:
    """Return why no name of a service can be reached: Traefik, behind this one, must answer by http."""
    ends = service.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    addresses = [end["ip"] for end in ends if "ip" in end]
    ports = [port["port"] for port in service.get("spec", {}).get("ports", []) if port.get("name") == "web"]
    if not service:
        return "Traefik is not installed yet"
    if not addresses or not ports:
        return "Traefik has no address yet"
    connection = http.client.HTTPConnection(addresses[0], ports[0], timeout=PROBE_SECONDS)
    try:
        # It says 404, since there is no such name: it is there.
        connection.request("GET", "/", headers={"Host": "dev-env.localhost"})
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return "Traefik does not answer yet"
    finally:
        connection.close()
    return ""


@dataclass
class _Progress:
    """What was reached when, and what is to be said of it.

    Attributes:
        since: When the waiting began; seconds since the machine was switched on.
        reached: Part -> seconds since the machine was switched on.
    """

    report: Callable[[str], None]
    since: float
    reached: dict[str, float] = field(default_factory=dict)
    _part: str = ""
    _said: float = -SAY_EVERY_SECONDS

    def note(self, seen: Readiness) -> None:
        """Note what is there, and say what is waited for: when that is another part, and now and then."""
        now = uptime()
        for part, lack in seen.lacks.items():
            if not lack:
                self.reached.setdefault(part, round(now, 1))
        part = next((part for part, lack in seen.lacks.items() if lack), "")
        if part != self._part:
            self._part, self._said = part, -SAY_EVERY_SECONDS
        if part and now - self._said >= SAY_EVERY_SECONDS:
            self._said = now
            self.report(f"waiting for {seen.waiting} ({now - self.since:.0f} s so far)")

    def times(self) -> str:
        """Return when each part was there."""
        return ", ".join(f"{part} {seconds:.0f} s" for part, seconds in self.reached.items())


def wait(report: Callable[[str], None], seconds: float = WAIT_SECONDS) -> dict[str, float]:
    """Wait until the environment is ready; returns part -> seconds since the machine was switched on.

    Args:
        seconds: How long at most.

    Raises:
        Failure: It was not ready in time; what was reached, and when, is told.
    """
    end = time.monotonic() + seconds
    progress = _Progress(report, uptime())
    watch = Watch()
    while True:
        looked = time.monotonic()
        seen = watch.look()
        progress.note(seen)
        if not seen.waiting:
            return progress.reached
        if time.monotonic() > end:
            reached = f"\nthere since the machine was switched on: {progress.times()}" if progress.reached else ""
            raise Failure(
                f"not ready after {seconds:.0f} s of waiting: {seen.waiting}{reached}",
                "`dev-env doctor`, `journalctl -u k3s`",
            )
        # A look costs a busy machine what it waits for: at most half of the time goes there.
        time.sleep(max(POLL_SECONDS, time.monotonic() - looked))


def note(reached: Mapping[str, float]) -> dict[str, Any]:
    """Note when the environment was ready first since the machine was switched on; returns what is noted.

    Returns:
        `seconds_since_boot`, and `parts`: part -> seconds since the machine was switched on.
    """
    if not READY.exists():
        READY.parent.mkdir(exist_ok=True)
        READY.write_text(json.dumps({"seconds_since_boot": round(uptime(), 1), "parts": dict(reached)}) + "\n")
    return dict(json.loads(read_text(READY)))


def told(seen: Readiness) -> Iterator[str]:
    """Yield lines that say how far the environment is."""
    if seen.waiting:
        yield f"not ready yet: {seen.waiting}"
    elif READY.exists():
        yield f"ready (after {json.loads(read_text(READY))['seconds_since_boot']:.0f} s)"
    else:
        yield "ready"
    if seen.starting:
        yield f"starting: {', '.join(seen.starting)} (nothing waits for these)"


def uptime() -> float:
    """Return the seconds since the machine was switched on."""
    return float(Path("/proc/uptime").read_text().split()[0])


def k3s_version() -> str:
    """Return the version of the program k3s that is here."""
    path = shutil.which("k3s")
    if not path:
        raise Failure("k3s is not installed")
    return _said_version(path, Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _said_version(path: str, _changed: int) -> str:
    """Ask a program once for each time that it was replaced: k3s takes a second to say its version."""
    found = re.match(r"k3s version (\S+)", run([path, "--version"]))
    return found[1] if found else "an unknown version"
