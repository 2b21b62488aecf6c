"""A program that stands for k3s in tests, where k3s itself cannot be downloaded. It is never part of a released image.

It answers kubectl and helm as a cluster does. Run by root, as in an image, it makes what a cluster makes of the
network:

- a bridge, and for each pod a network namespace behind a veth pair. Whatever goes to a pod goes through the bridge, and
  a pod that cannot be reached there is not ready, nor is what counts it;
- containers of images whose layers it has: processes with mounts as runc makes them, as the pod's user. Pods of other
  images are well without a process, and their condition Ready says so (reason `Simulated`);
- in the pods of CoreDNS and Traefik, a name server for services, and what leads http to them. Services have addresses
  and NodePorts, for TCP.

With STAND_IN_NETWORK=none, and without root, it makes none of these: every pod is well, DNS and Traefik listen on this
machine. STAND_IN_DNS_PORT and STAND_IN_HTTP_PORT say where, STAND_IN_LATE which parts of k3s take how many seconds
(`traefik=20`; `metrics-server`: for ever), and STAND_IN_START_SECONDS for how long /readyz fails.

It does not show: https by Traefik, `kubectl exec`, `run -i` and `port-forward`, names of the internet in pods, init
containers, probes by commands and by what http answers, limits of memory, capabilities, a /proc of each container,
network policies, rolling updates, the real one's need of a default route, memory and time.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from pathlib import Path

from vmimage import PROJECT
from vmimage.spec.load import load_spec

__all__ = ["NEWER", "NEWEST", "VERSION", "build"]

PROGRAM = Path(__file__).parent / "program"
VERSION = load_spec(PROJECT / "images.yaml").pins["k3s"].version
"""The version that the project pins, which the stand-in says it is."""
NEWER = re.sub(r"\d+(?=\+)", lambda patch: str(int(patch[0]) + 1), VERSION)
"""The next patch release."""
NEWEST = re.sub(r"\d+$", lambda build: str(int(build[0]) + 1), NEWER)
"""The one after that."""
START = "from tests.k3s_stand_in.program.cli import main\nmain()\n"


def build(to: Path, *, version: str = VERSION, comes_up: bool = True) -> str:
    """Write the program as one executable file, always the same bytes; returns its SHA-256.

    Args:
        comes_up: Whether `server` works; else it says its version, and fails when it is started.
    """
    texts = {path.name: path.read_text() for path in sorted(PROGRAM.glob("*.*"))}
    texts["version.py"] = f"VERSION = {version!r}\nCOMES_UP = {comes_up}\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in ("tests", "tests/k3s_stand_in"):
            archive.writestr(zipfile.ZipInfo(f"{package}/__init__.py"), b"")
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(f"tests/k3s_stand_in/program/{name}"), text)
        archive.writestr(zipfile.ZipInfo("__main__.py"), START)
    data = b"#!/usr/bin/env python3\n" + packed.getvalue()
    to.write_bytes(data)
    to.chmod(0o755)
    return hashlib.sha256(data).hexdigest()
