"""`k3s server`: its settings, and all that it starts."""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.k3s_stand_in.program import dns, ingress
from tests.k3s_stand_in.program.api import Server as Api
from tests.k3s_stand_in.program.certificates import certificates
from tests.k3s_stand_in.program.containers import Runtime
from tests.k3s_stand_in.program.images import Images
from tests.k3s_stand_in.program.kubelet import Kubelet
from tests.k3s_stand_in.program.network import DNS, End, Sandbox, inside, ip, network
from tests.k3s_stand_in.program.objects import Objects
from tests.k3s_stand_in.program.parts import TRAEFIK_PORT, Facts, first_objects
from tests.k3s_stand_in.program.paths import DATA
from tests.k3s_stand_in.program.proxy import LOCAL, Proxy
from tests.k3s_stand_in.program.version import COMES_UP

SETTINGS = {
    "write-kubeconfig": "/etc/rancher/k3s/k3s.yaml", "write-kubeconfig-mode": "0600", "write-kubeconfig-group": "",
    "node-name": "", "node-ip": "", "tls-san": [], "disable": [], "https-listen-port": "6443", "data-dir": str(DATA),
    "flannel-iface": "", "resolv-conf": "", "kubelet-arg": [], "bind-address": "0.0.0.0",  # noqa: S104 - as the real one
}  # fmt: skip


def read_settings(path: Path) -> dict[str, Any]:
    """Read config.yaml: flat keys with texts, or lists of texts."""
    found: dict[str, Any] = dict(SETTINGS)
    key = ""
    for line in path.read_text().splitlines() if path.exists() else []:
        text = re.sub(r"(^|\s)#.*", "", line).rstrip()
        if not text:
            continue
        if text.lstrip().startswith("- "):
            found[key] = [*found.get(key, []), text.lstrip()[2:].strip("\"' ")]
            continue
        key, _, value = (part.strip() for part in text.partition(":"))
        if key not in SETTINGS:
            print(f"Unknown flag --{key} found in config.yaml, skipping", file=sys.stderr)
            continue
        found[key] = value.strip("\"'") if value else list(SETTINGS[key])
    return found


def server(arguments: list[str]) -> None:
    """Run until SIGTERM."""
    if not COMES_UP:
        sys.exit("this stand-in does not come up")
    threading.excepthook = fail
    options = options_of(arguments)
    data = Path(options["data_dir"])
    own = data / "server"
    for folder in (own / "tls", own / "db"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    node = options["node_name"] or socket.gethostname()
    address = options["node_ip"] or "127.0.0.1"
    names = ["localhost", "127.0.0.1", address, node, *options["tls_san"]]
    certificate, key = certificates(own / "tls", names)
    token_file = own / "token"
    if not token_file.exists():
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(24))
    objects = Objects(own / "db" / "state.json")
    disabled = frozenset(options["disable"])
    images = Images(data)
    import_beside(images)
    port = int(options["https_listen_port"])
    kubelet = Kubelet(objects, network(), Runtime(data, images), data)
    http_port, dns = addons(kubelet, options["bind_address"], port, disabled)
    first_objects(objects, Facts(node, address, disabled, http_port, dns))
    kubelet.start()
    starting = time.monotonic() + float(os.environ.get("STAND_IN_START_SECONDS", "2"))
    api = Api((options["bind_address"], port), objects, kubelet.runtime.pods, starting)
    api.trust(own / "tls" / "server-ca.crt", certificate, key)
    write_kubeconfig(options, own / "tls", port)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=api.shutdown).start())
    notify("READY=1")
    api.serve_forever()


def import_beside(images: Images) -> None:
    """Import the archives of the agent's folder; the last one goes on beside what comes next, as in k3s 1.36."""
    started = threading.Event()

    def last_begins() -> None:
        started.set()
        time.sleep(float(os.environ.get("STAND_IN_IMPORT_SECONDS", "3")))

    threading.Thread(target=images.import_all, args=(last_begins,), daemon=True).start()
    started.wait()


def fail(what: threading.ExceptHookArgs) -> None:
    """End this program with a thread of it: better than a cluster in which one part does nothing."""
    threading.__excepthook__(what)
    os._exit(1)


def addons(kubelet: Kubelet, bind: str, api_port: int, disabled: frozenset[str]) -> tuple[int, End]:
    """Bring Traefik, DNS and the proxy up; returns the port and the end where the first two are to be asked.

    With a network they are in pods of it, and start with those; else they listen at addresses of this machine.
    """
    objects, http_port = kubelet.objects, int(os.environ.get("STAND_IN_HTTP_PORT", "80"))
    if kubelet.network.real:
        kubelet.parts = {"coredns": partial(coredns, objects), "traefik": partial(traefik, objects)}
        kubelet.after = Proxy(objects, api_port).sync
        return http_port, (DNS, 53)
    if "traefik" not in disabled:
        ingress.Server(objects, (bind, http_port)).start()
    (asked,) = dns.listening((LOCAL, int(os.environ.get("STAND_IN_DNS_PORT", "0"))))
    dns.Server(objects, [asked])
    return http_port, (LOCAL, asked.getsockname()[1])


def coredns(objects: Objects, sandbox: Sandbox) -> dns.Server:
    """Answer for DNS in the network of a pod."""
    ip([f"address add {DNS}/32 dev eth0"], sandbox.namespace)
    with inside(sandbox.namespace):
        sockets = dns.listening((sandbox.address, 53), (DNS, 53))
    return dns.Server(objects, sockets)


def traefik(objects: Objects, sandbox: Sandbox) -> ingress.Server:
    """Answer for Traefik in the network of a pod."""
    with inside(sandbox.namespace):
        server = ingress.Server(objects, (sandbox.address, TRAEFIK_PORT))
    server.start()
    return server


def options_of(arguments: list[str]) -> dict[str, Any]:
    """Return the options of `k3s server`: of its command line, else of config.yaml."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", default="/etc/rancher/k3s/config.yaml")
    chosen, rest = first.parse_known_args(arguments)
    parser = argparse.ArgumentParser()
    for name, value in read_settings(Path(chosen.config)).items():
        parser.add_argument(f"--{name}", default=value, action="append" if isinstance(value, list) else "store")
    return vars(parser.parse_args(rest))


def write_kubeconfig(options: dict[str, Any], tls: Path, port: int) -> None:
    """Write the kubeconfig as k3s does: whole, with its mode and group."""
    path = Path(options["write_kubeconfig"])
    path.parent.mkdir(parents=True, exist_ok=True)

    def data(name: str) -> str:
        return base64.b64encode((tls / name).read_bytes()).decode()

    cluster = {"certificate-authority-data": data("server-ca.crt"), "server": f"https://127.0.0.1:{port}"}
    user = {"client-certificate-data": data("client-admin.crt"), "client-key-data": data("client-admin.key")}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": cluster}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "current-context": "default",
        "users": [{"name": "default", "user": user}],
    }
    beside = path.with_suffix(".new")
    beside.touch(mode=0o600)
    beside.write_text(json.dumps(content, indent=2) + "\n")
    if options["write_kubeconfig_group"]:
        shutil.chown(beside, group=options["write_kubeconfig_group"])
    beside.chmod(int(options["write_kubeconfig_mode"], 8))
    beside.replace(path)


def notify(state: str) -> None:
    """Tell systemd; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(state.encode())
