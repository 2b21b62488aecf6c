"""k3s by the names it is called: `k3s server`, `kubectl`, `crictl`, `ctr`."""

from __future__ import annotations

import argparse
import base64
import gzip
import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

from tests.k3s_stand_in.program import ingress
from tests.k3s_stand_in.program.api import serve
from tests.k3s_stand_in.program.controllers import first_objects
from tests.k3s_stand_in.program.objects import Objects
from tests.k3s_stand_in.program.version import COMES_UP, VERSION

DATA = Path("/var/lib/rancher/k3s")
SETTINGS = {
    "write-kubeconfig": "/etc/rancher/k3s/k3s.yaml", "write-kubeconfig-mode": "0600", "write-kubeconfig-group": "",
    "node-name": "", "node-ip": "", "tls-san": [], "disable": [], "https-listen-port": "6443", "data-dir": str(DATA),
    "flannel-iface": "", "resolv-conf": "", "bind-address": "0.0.0.0",  # noqa: S104 - as the real one
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
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", default="/etc/rancher/k3s/config.yaml")
    chosen, rest = first.parse_known_args(arguments)
    settings = read_settings(Path(chosen.config))
    parser = argparse.ArgumentParser()
    for name, value in settings.items():
        parser.add_argument(f"--{name}", default=value, action="append" if isinstance(value, list) else "store")
    options = vars(parser.parse_args(rest))
    data = Path(options["data_dir"]) / "server"
    for folder in (data / "tls", data / "db"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    node = options["node_name"] or socket.gethostname()
    address = options["node_ip"] or "127.0.0.1"
    certificate, key = certificates(data / "tls", ["localhost", "127.0.0.1", address, node, *options["tls_san"]])
    token_file = data / "token"
    if not token_file.exists():
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(24))
    objects = Objects(data / "db" / "state.json")
    http_port = int(os.environ.get("STAND_IN_HTTP_PORT", "80"))
    first_objects(objects, node, address, set(options["disable"]), http_port)
    import_images(Path(options["data_dir"]))
    port = int(options["https_listen_port"])
    api = serve(objects, options["bind_address"], port, data / "tls" / "server-ca.crt", certificate, key)
    if "traefik" not in options["disable"]:
        ingress.serve(objects, options["bind_address"], http_port)
    write_kubeconfig(options, data / "tls", port)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=api.shutdown).start())
    notify("READY=1")
    api.serve_forever()


def certificates(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """Return the server's certificate and key, and leave those of the client; the CA is made once."""
    ca, ca_key = folder / "server-ca.crt", folder / "server-ca.key"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    if not ca.exists():
        usage = "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign"
        subject = f"/CN=k3s-server-ca@{secrets.token_hex(4)}"
        openssl(
            "req", "-x509", *curve, "-keyout", ca_key, "-out", ca, "-days", "3650", "-subj", subject, "-addext", usage
        )
    alternatives = ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in dict.fromkeys(names))
    for name, subject, more in (
        ("serving-kube-apiserver", "/CN=k3s", ["-addext", f"subjectAltName={alternatives}"]),
        ("client-admin", "/O=system:masters/CN=system:admin", ["-addext", "extendedKeyUsage=clientAuth"]),
    ):
        key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
        signed = ["-CA", ca, "-CAkey", ca_key, "-keyout", key, "-out", certificate, "-days", "365"]
        openssl(
            "req", "-x509", *curve, *signed, "-subj", subject, "-addext", "basicConstraints=critical,CA:FALSE", *more
        )
    return folder / "serving-kube-apiserver.crt", folder / "serving-kube-apiserver.key"


def is_address(name: str) -> bool:
    """Tell addresses from names."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def openssl(*arguments: object) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


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


def import_images(data: Path) -> None:
    """Record the images of the archives beside the agent; each archive once where `.cache.json` says so."""
    folder = data / "agent" / "images"
    cache = folder / ".cache.json"
    done = json.loads(cache.read_text() or "{}") if cache.exists() else {}
    for path in sorted(folder.glob("*.tar*")):
        if path.name not in done:
            record(data, tags_of(path.read_bytes()))
            done[path.name] = path.stat().st_size
    if cache.exists():
        cache.write_text(json.dumps(done))


def tags_of(archive: bytes) -> list[str]:
    """Return the names of the images in an archive of `docker save`, perhaps compressed."""
    if archive[:2] == b"\x1f\x8b":
        archive = gzip.decompress(archive)
    elif archive[:4] == b"\x28\xb5\x2f\xfd":
        archive = subprocess.run(["zstd", "-dc"], input=archive, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as found:
        stream = found.extractfile("manifest.json")
        assert stream
        return [tag for image in json.load(stream) for tag in image["RepoTags"]]


def record(data: Path, tags: list[str]) -> None:
    """Keep names of images that are there."""
    path = data / "agent" / "stand-in-images.json"
    path.write_text(json.dumps(sorted({*recorded(data), *tags})))


def recorded(data: Path) -> list[str]:
    """Return the names of the images that are there."""
    path = data / "agent" / "stand-in-images.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def images(tool: str, arguments: list[str]) -> None:
    """Do what `crictl images` and `ctr images` are asked for in tests."""
    data = Path(os.environ.get("K3S_DATA_DIR", DATA))
    words = [word for word in arguments if not word.startswith("-")]
    if tool == "crictl" and words[0] == "images":
        found = [{"id": f"sha256:{number}", "repoTags": [tag]} for number, tag in enumerate(recorded(data))]
        print(json.dumps({"images": found}) if "--output=json" in arguments else "\n".join(recorded(data)))
    elif words[:2] == ["images", "import"]:
        path = words[2]
        record(data, tags_of(sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()))
    else:
        print("\n".join(recorded(data)))


def main() -> None:
    """Do what the name or the first argument says."""
    called, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    tool = called if called in ("kubectl", "crictl", "ctr") else (arguments.pop(0) if arguments else "--help")
    if tool in ("--version", "-v"):
        print(f"k3s version {VERSION} (stand-in)\ngo version none")
    elif tool == "server":
        server(arguments)
    elif tool in ("crictl", "ctr"):
        images(tool, arguments)
    elif tool == "completion":
        print("complete -W 'server kubectl crictl ctr' k3s")
    else:
        sys.exit(f"the stand-in for k3s does not know {tool}")
