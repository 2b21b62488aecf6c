"""Stands in for upstream: pages with versions and SHA-256, as k3s, Kubernetes and helm publish them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from vmimage import PROJECT

ARCHES = ("amd64", "arm64")
HOSTS = ("dl.k8s.io", "update.k3s.io", "github.com", "get.helm.sh")
HELM = b"#!/bin/sh\necho helm\n"


@dataclass
class Pages:
    """What it answers: path, with the host first and without percent-encoding -> status and body."""

    port: int = 0
    pages: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def upstreams(self) -> list[str]:
        """Return what `--upstream` is to be given."""
        return [f"https://{host}/=http://127.0.0.1:{self.port}/{host}/" for host in HOSTS]

    def put(self, path: str, body: str | bytes, status: int = 200) -> None:
        """Set a page."""
        self.pages[f"/{path}"] = (status, body.encode() if isinstance(body, str) else body)

    def kubectl(self, version: str, *, newest: bool = True) -> None:
        """Release a version of kubectl."""
        if newest:
            self.put("dl.k8s.io/release/stable.txt", version)
        minor = version.removeprefix("v").rpartition(".")[0]
        self.put(f"dl.k8s.io/release/stable-{minor}.txt", version)
        for arch in ARCHES:
            self.put(
                f"dl.k8s.io/release/{version}/bin/linux/{arch}/kubectl.sha256", digest(f"kubectl {version} {arch}")
            )

    def k3s(self, version: str) -> None:
        """Release a version of k3s, and make it the stable one."""
        channels = {"stable": version, "latest": "v9.9.9+k3s1", "testing": "v9.9.9-rc1+k3s1"}
        data = [
            {
                "id": name,
                "type": "channel",
                "links": {"self": f"https://x.invalid/{name}"},
                "name": name,
                "latest": each,
            }
            for name, each in channels.items()
        ]
        listed = {"type": "collection", "resourceType": "channels", "data": [*data, {"id": "v1.1", "name": "v1.1"}]}
        self.put("update.k3s.io/v1-release/channels", json.dumps(listed))
        for arch in ARCHES:
            lines = [f"{digest(f'{name} {version}')}  {name}\n" for name in k3s_files(arch)]
            self.put(f"github.com/k3s-io/k3s/releases/download/{version}/sha256sum-{arch}.txt", "".join(lines))

    def helm(self, version: str, mirror: Path) -> None:
        """Release a version of helm; its archives are in a mirror."""
        self.put("get.helm.sh/helm4-latest-version", f"{version}\n")
        mirror.mkdir(exist_ok=True)
        for arch in ARCHES:
            name = f"helm-{version}-linux-{arch}.tar.gz"
            (mirror / name).write_bytes(helm_archive(version, arch))
            known = hashlib.sha256(helm_archive(version, arch)).hexdigest()
            self.put(f"get.helm.sh/{name}.sha256sum", f"{known}  {name}\n")


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def k3s_files(arch: str) -> list[str]:
    """Return names of files in a release of k3s, as its list of checksums has them."""
    program = "k3s" if arch == "amd64" else f"k3s-{arch}"
    images = f"k3s-airgap-images-{arch}.tar"
    return [images, f"{images}.gz", f"{images}.zst", f"k3s-images-{arch}.txt", program]


def helm_program(version: str, arch: str) -> bytes:
    """Return what is in an archive of helm."""
    return HELM + f"# {version} {arch}\n".encode()


def helm_archive(version: str, arch: str) -> bytes:
    """Return an archive of helm."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo(f"linux-{arch}/helm")
        info.size = len(helm_program(version, arch))
        tar.addfile(info, io.BytesIO(helm_program(version, arch)))
    return data.getvalue()


@contextlib.contextmanager
def upstream() -> Iterator[Pages]:
    """Serve pages on this host."""
    pages = Pages()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path)
            pages.asked.append(path.lstrip("/"))
            status, body = pages.pages.get(path, (404, b"Not Found"))
            if path in pages.redirects:
                status = 302
            self.send_response(status)
            if path in pages.redirects:
                self.send_header("Location", pages.redirects[path])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        pages.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield pages
        finally:
            server.shutdown()
            thread.join()


def project_of(folder: Path, edit: Callable[[str], str] = lambda text: text) -> Path:
    """Make a project with the images.yaml of this one; returns that file."""
    folder.mkdir()
    for name in ("provision", "tests"):
        (folder / name).symlink_to(PROJECT / name)
    path = folder / "images.yaml"
    path.write_text(edit((PROJECT / "images.yaml").read_text()))
    return path
