"""The kubelet's part: gives pods their networks and containers, and says how they are, by what their networks answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.k3s_stand_in.program.containers import Container, NotYet, Runtime
from tests.k3s_stand_in.program.controllers import condition, set_status, settle_owners
from tests.k3s_stand_in.program.image_tools import CONTAINERS
from tests.k3s_stand_in.program.network import CLOSED_PORT, End, NoNetwork, Sandbox, end_all
from tests.k3s_stand_in.program.objects import Object, Objects, Refused
from tests.k3s_stand_in.program.services import SIMULATED, port_number

PERIOD = 1.0
FAILURES = 2
"""So many probes in a row have to fail before a pod is not ready any more."""
GRACE_SECONDS = 30
PAUSE = 5.0
"""After which a pod that could not be started is tried again."""


class Part(Protocol):
    """A server of the stand-in in the network of a pod."""

    def close(self) -> None:
        """End it."""


@dataclass
class Running:
    """A pod that was started."""

    pod: Object
    sandbox: Sandbox
    containers: list[Container]
    part: Part | None
    failures: int = FAILURES

    def named(self, name: str) -> Container | None:
        """Return a container that runs."""
        return next((each for each in self.containers if each.name == name), None)


@dataclass
class Kubelet:
    """Keeps the pods of this node.

    Attributes:
        parts: Label `app` of pods of k3s itself, and what starts in their network.
        after: What is done after each look at all pods.
    """

    objects: Objects
    network: NoNetwork
    runtime: Runtime
    data: Path
    parts: Mapping[str, Callable[[Sandbox], Part]] = field(default_factory=dict)
    after: Callable[[], None] = lambda: None
    late: Mapping[str, float] = field(default_factory=lambda: lateness(os.environ.get("STAND_IN_LATE", "")))
    _running: dict[str, Running] = field(default_factory=dict)
    _again: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Begin with no pod: what was known of them is of an earlier run."""
        self.network.start()
        self.runtime.start()
        for pod in self.objects.find("pods"):
            self._report(pod, waiting(pod, "k3s has just started"))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            seen = self.objects.revision
            self.sync()
            with self.objects.changed:
                if self.objects.revision == seen:
                    self.objects.changed.wait(PERIOD)

    def sync(self) -> None:
        """Look at all pods once."""
        pods = {pod["metadata"]["uid"]: pod for pod in self.objects.find("pods")}
        for uid in [uid for uid in self._running if uid not in pods]:
            self._end(self._running.pop(uid))
        for uid, pod in pods.items():
            if uid not in self._running:
                self._begin(pod)
            if uid in self._running:
                self._running[uid].pod = pod
        for running in self._running.values():
            for container in running.containers:
                container.keep_running(running.pod["spec"].get("restartPolicy", "Always"))
        self._probe()
        self._write_containers()
        self.after()

    def _begin(self, pod: Object) -> None:
        meta = pod["metadata"]
        if self.runtime.images.lacks_pause():
            why = "failed to get sandbox image: there is no image of pause"
            print(f"{meta['namespace']}/{meta['name']}: {why}", file=sys.stderr, flush=True)
            return self._report(pod, waiting(pod, why))
        if time.monotonic() < self._again.get(meta["uid"], 0.0):
            return None
        sandbox = None
        try:
            sandbox = self.network.add()
            found = self.runtime.containers(self.objects, pod, sandbox) if self.network.real else []
            start = self.parts.get((meta.get("labels") or {}).get("app", ""))
            part = start(sandbox) if start and meta["namespace"] == "kube-system" else None
            self._running[meta["uid"]] = Running(pod, sandbox, found, part)
        except (NotYet, OSError, KeyError, subprocess.CalledProcessError) as error:
            # A KeyError is of a pod that the real API server refuses.
            if sandbox:
                self.network.remove(sandbox)
            self.runtime.remove(pod)
            self._again[meta["uid"]] = time.monotonic() + PAUSE
            return self._report(pod, waiting(pod, str(error)))
        return None

    def _end(self, running: Running) -> None:
        if running.part:
            running.part.close()
        if running.containers:
            grace = running.pod["spec"].get("terminationGracePeriodSeconds", GRACE_SECONDS)
            end_all([running.sandbox.namespace], grace)
        self.network.remove(running.sandbox)
        self.runtime.remove(running.pod)

    def _probe(self) -> None:
        probes = {uid: probes_of(running) for uid, running in self._running.items()}
        answers = self.network.answers({end for each in probes.values() for end in each.values()})
        for uid, running in self._running.items():
            good = {name: answered(running.named(name), answers.get(end), end) for name, end in probes[uid].items()}
            running.failures = 0 if all(good.values()) else running.failures + 1
            if self._is_late(running.pod):
                good = dict.fromkeys(good, False)
            elif running.failures < FAILURES:
                good = dict.fromkeys(good, True)
            self._report(running.pod, status_of(running, good))

    def _is_late(self, pod: Object) -> bool:
        until = self.late.get((pod["metadata"].get("labels") or {}).get("app", ""), 0.0)
        return time.monotonic() < self._since + until

    def _report(self, pod: Object, status: Object) -> None:
        meta = pod["metadata"]
        key = ("pods", meta["namespace"], meta["name"])
        with self.objects.changed, suppress(Refused):  # it may be gone
            before = self.objects.get(key)
            if before["metadata"]["uid"] == meta["uid"]:
                set_status(self.objects, key, status)
                if self.objects.get(key) != before:
                    settle_owners(self.objects, pod)

    def _write_containers(self) -> None:
        """Write down what `crictl ps` shows."""
        text = json.dumps(
            [found for running in self._running.values() for found in shown(running, self.runtime)], indent=2
        )
        path = self.data / CONTAINERS
        if not path.exists() or path.read_text() != text:
            beside = path.with_suffix(".new")
            beside.write_text(text)
            beside.replace(path)


def lateness(text: str) -> dict[str, float]:
    """Read which parts are not ready for how many seconds, or for ever: `metrics-server,traefik=20`."""
    words = [word.partition("=") for word in text.split(",") if word]
    return {name.strip(): float(seconds) if seconds else float("inf") for name, _, seconds in words}


def probes_of(running: Running) -> dict[str, End]:
    """Return which end of a pod's network is asked for each of its containers."""
    ends = {}
    for container in running.pod["spec"]["containers"]:
        probe = container.get("readinessProbe") or {}
        how: Any = probe.get("tcpSocket") or probe.get("httpGet")
        port = port_number(running.pod, how.get("port", 0)) if how and running.named(container["name"]) else 0
        ends[container["name"]] = (running.sandbox.address, port or CLOSED_PORT)
    return ends


def answered(container: Container | None, answer: bool | None, end: End) -> bool:
    """Tell whether a container is ready, by what its end answered.

    One in which nothing runs is there if anything answers: the kernel refuses a port that nobody listens at. One that
    runs and has no probe is ready at once, as with the real kubelet.
    """
    if not container:
        return answer is not None
    runs = container.process is not None and container.exit_code is None
    return runs and (end[1] == CLOSED_PORT or answer is True)


def waiting(pod: Object, why: str) -> Object:
    """Return the status of a pod that cannot be started yet."""
    states = [
        {"name": each["name"], "image": each.get("image", ""), "imageID": "", "ready": False, "restartCount": 0,
         "state": {"waiting": {"reason": "ContainerCreating", "message": why}}}
        for each in pod["spec"]["containers"]
    ]  # fmt: skip
    conditions = [condition("Ready", False, "ContainersNotReady", why), condition("PodScheduled")]
    return {"phase": "Pending", "conditions": conditions, "containerStatuses": states}


def status_of(running: Running, good: Mapping[str, bool]) -> Object:
    """Return the status of a pod that was started."""
    codes = [each.exit_code for each in running.containers]
    ended = bool(codes) and None not in codes and running.pod["spec"].get("restartPolicy", "Always") != "Always"
    phase = "Running" if not ended else "Failed" if any(codes) else "Succeeded"
    ready = all(good.values()) and not ended
    reason = "" if ready else "ContainersNotReady"
    message = ""
    if not running.containers:
        # Seen wherever this is read: it tells of no process.
        reason, message = SIMULATED, "the stand-in for k3s runs no process in this pod"
    states = [state_of(each, running.named(each["name"]), good) for each in running.pod["spec"]["containers"]]
    return {
        "phase": phase,
        "podIP": running.sandbox.address,
        "podIPs": [{"ip": running.sandbox.address}],
        "conditions": [condition("Ready", ready, reason, message), condition("ContainersReady", ready, reason),
                       condition("Initialized"), condition("PodScheduled")],
        "containerStatuses": states,
    }  # fmt: skip


def state_of(wanted: Object, container: Container | None, good: Mapping[str, bool]) -> Object:
    """Return the status of a container."""
    state: Object = {"running": {}}
    if container and container.exit_code is not None:
        reason = "Error" if container.exit_code else "Completed"
        state = {"terminated": {"exitCode": container.exit_code, "reason": reason}}
    elif container:
        state = {"running": {"startedAt": container.started}}
    return {
        "name": wanted["name"],
        "image": wanted.get("image", ""),
        "imageID": container.image.id if container else "",
        "ready": good[wanted["name"]],
        "started": True,
        "restartCount": max(container.restarts, 0) if container else 0,
        "state": state,
    }


def shown(running: Running, runtime: Runtime) -> list[Object]:
    """Return the containers of a pod whose images are there, as `crictl ps` shows them."""
    meta, found = running.pod["metadata"], []
    labels = {f"io.kubernetes.pod.{name}": meta[name] for name in ("name", "namespace", "uid")}
    for each in running.pod["spec"]["containers"]:
        image, container = runtime.images.find(each.get("image", "")), running.named(each["name"])
        if image:
            found.append({
                "id": f"{meta['uid']}-{each['name']}",
                "podSandboxId": running.sandbox.namespace,
                "metadata": {"name": each["name"], "attempt": 0},
                "image": {"image": image.id, "userSpecifiedImage": each["image"]},
                "imageRef": image.id,
                "state": "CONTAINER_RUNNING" if not container or container.exit_code is None else "CONTAINER_EXITED",
                "labels": labels,
            })  # fmt: skip
    return found
