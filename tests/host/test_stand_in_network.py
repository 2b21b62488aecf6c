"""The tests' stand-in for k3s with its bridge and pods, in namespaces of its own: this machine's own stay as is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.k3s_stand_in import build
from tests.tools import image_archive, pinned_tools

UNSHARE = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]
# systemd's part is to start it again.
START = """\
mount -t tmpfs none /run
mount --make-rshared /
mkdir -p /run/src/early /run/src/late
mount -t tmpfs early /run/src/early
echo hello > /run/src/file
ip link set lo up
while :; do "$@"; done
"""
SERVE = "busybox httpd -p 8080 -h /www; while busybox sleep 0.2; do busybox touch /www/early/x /www/late/y; done"
CONTAINER = {
    "name": "page",
    "image": "localhost/busybox:1",
    "command": ["busybox", "sh", "-c", SERVE],
    "ports": [{"name": "http", "containerPort": 8080}],
    "readinessProbe": {"tcpSocket": {"port": "http"}},
    "securityContext": {"readOnlyRootFilesystem": True},
    "volumeMounts": [
        {"name": "www", "mountPath": "/www", "readOnly": True, "mountPropagation": "HostToContainer"},
    ],
}
POD = {
    "terminationGracePeriodSeconds": 1,
    "volumes": [{"name": "www", "hostPath": {"path": "/run/src", "type": "Directory"}}],
    "containers": [CONTAINER],
}
LABELS = {"app": "page"}
DEPLOYMENT = {"selector": {"matchLabels": LABELS}, "template": {"metadata": {"labels": LABELS}, "spec": POD}}
SERVICE = {"type": "NodePort", "selector": LABELS, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]}
PATH = {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "page", "port": {"name": "web"}}}}
INGRESS = {"rules": [{"host": "page.localhost", "http": {"paths": [PATH]}}]}
OBJECTS = [
    {"apiVersion": version, "kind": kind, "metadata": {"name": "page"}, "spec": spec}
    for version, kind, spec in (
        ("apps/v1", "Deployment", DEPLOYMENT),
        ("v1", "Service", SERVICE),
        ("networking.k8s.io/v1", "Ingress", INGRESS),
    )
]
ASK = """
import sys, urllib.request
print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], None, {"Host": "page.localhost"})).read())
"""
LOOK_UP = """
import socket
question = bytes.fromhex("000101000001000000000000") + b"\\4page\\7default\\3svc\\7cluster\\5local\\0\\0\\1\\0\\1"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
    asks.settimeout(5)
    asks.sendto(question, ("10.43.0.10", 53))
    print(socket.inet_ntoa(asks.recv(512)[-4:]))
"""


@dataclass(frozen=True)
class Machine:
    """Where the stand-in runs."""

    folder: Path
    pid: int

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        enter = ["nsenter", f"--target={self.pid}", "--user", "--net", "--mount", "--pid", "--preserve-credentials"]
        environment = {
            **os.environ,
            "KUBECONFIG": f"{self.folder}/k3s.yaml",
            "PATH": f"{self.folder}/tools:{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        return subprocess.run([*enter, *argv], capture_output=True, text=True, check=False, env=environment, timeout=60)

    def said(self, *argv: str) -> str:
        """Run a command there that works; returns its output."""
        done = self.run(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def page(self, url: str) -> str:
        """Return a page, or what is said of it."""
        done = self.run(sys.executable, "-c", ASK, url)
        return done.stdout + done.stderr

    def ready(self, name: str, namespace: str = "default") -> str:
        """Return how many pods of a deployment are ready."""
        path = "jsonpath={.status.availableReplicas}"
        return self.said("kubectl", "get", "deployment", name, f"--namespace={namespace}", "-o", path)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine in which the stand-in has just been started, with an image of busybox."""
    busybox = shutil.which("busybox")
    if not busybox or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces, or no busybox, here")
    pinned_tools(tmp_path)
    build(tmp_path / "k3s")
    images = tmp_path / "data/agent/images"
    images.mkdir(parents=True)
    layer = {"bin/busybox": Path(busybox).read_bytes()}
    (images / "busybox.tar").write_bytes(image_archive({"localhost/busybox:1": [layer]}, Env=["PATH=/bin"]))
    (tmp_path / "config.yaml").write_text(
        f"write-kubeconfig: {tmp_path}/k3s.yaml\nnode-name: node\ndata-dir: {tmp_path}/data\n"
    )
    server = [sys.executable, str(tmp_path / "k3s"), "server", "--config", str(tmp_path / "config.yaml")]
    environment = {**os.environ, "STAND_IN_LATE": "metrics-server", "STAND_IN_START_SECONDS": "0"}
    with subprocess.Popen([*UNSHARE, "--mount-proc", "sh", "-c", START, "sh", *server], env=environment) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            until(lambda: (tmp_path / "k3s.yaml").exists() and process.poll() is None)
            yield Machine(tmp_path, int(children.read_text()))
        finally:
            process.kill()


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_pods_are_reached_through_their_bridge_and_nowhere_else(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "page.yaml").write_text("\n---\n".join(map(json.dumps, OBJECTS)))
    machine.said("kubectl", "create", "-f", f"{tmp_path}/page.yaml")
    machine.said("sh", "-c", "mount -t tmpfs late /run/src/late; echo late > /run/src/late/file")
    until(lambda: machine.ready("page") == "1")

    # By its name, its service's address and port, and Traefik; and what was mounted later is there.
    address = machine.said(sys.executable, "-c", LOOK_UP)
    found = json.loads(machine.said("kubectl", "get", "service", "page", "-o", "json"))["spec"]
    assert address == found["clusterIP"]
    for place in (address, f"127.0.0.1:{found['ports'][0]['nodePort']}", "127.0.0.1"):
        until(lambda place=place: "hello" in machine.page(f"http://{place}/file"))  # type: ignore[misc]
    assert "late" in machine.page("http://127.0.0.1/late/file")
    # Read-only is the mount itself: what is beneath it can be written to.
    written = machine.said("find", "/run/src", "-name", "[xy]").splitlines()
    assert sorted(written) == ["/run/src/early/x", "/run/src/late/y"]

    # As systemd-networkd does to what it takes for its own.
    ports = [line.split("@")[0] for line in machine.said("ip", "-br", "link", "show", "master", "cni0").splitlines()]
    assert len(ports) == 5
    for port in ports:
        machine.said("ip", "link", "set", port, "nomaster")
    until(lambda: machine.ready("page") == "0" and machine.ready("coredns", "kube-system") == "0")
    until(lambda: "Connection refused" in machine.page("http://127.0.0.1/file"))
    for port in ports:
        machine.said("ip", "link", "set", port, "master", "cni0")
    until(lambda: machine.ready("page") == "1" and "hello" in machine.page("http://127.0.0.1/file"))
    assert machine.ready("metrics-server", "kube-system") == "0", "it is late"

    # The server's restart makes all of it anew, and leaves nothing of what was.
    before = machine.said("pgrep", "-f", "containerd-shim")
    machine.said("kill", machine.said("pgrep", "-f", "k3s server --config").split()[-1])
    until(lambda: machine.run("kubectl", "get", "nodes").returncode == 0)
    until(lambda: machine.ready("page") == "1" and "hello" in machine.page("http://127.0.0.1/file"))
    assert len(machine.said("ip", "netns").splitlines()) == 5
    assert not set(before.split()) & set(machine.said("pgrep", "-f", "containerd-shim").split())

    # A pod that goes takes all of its own along.
    machine.said("kubectl", "delete", "deployment", "page")
    until(lambda: len(machine.said("ip", "netns").splitlines()) == 4)
    until(lambda: machine.run("pgrep", "-f", "containerd-shim").stdout == "")
