"""What tests share: kubectl and helm by the project's own pins, seeds, bundles, ports, a step that nobody sees."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any

import paramiko
import pycdlib
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from vmimage import PROJECT
from vmimage.cache.store import Store
from vmimage.plan import Plan, make_plan
from vmimage.spec.load import load_spec
from vmimage.stages.stage import BuildContext
from vmimage.util.console import Step


def before_call(number: int, run: Callable[[], object], *then: Callable[[], object]) -> int:
    """Run something; and before its call for files of that number, something else, as another process would do it.

    Args:
        then: What is done before that call, before the one after it, and so on.

    Returns:
        How many such calls there were until all was done.
    """
    made, left = 0, list(then)

    def noted(_: FrameType, event: str, called: Any) -> None:
        nonlocal made
        if event == "c_call" and (called.__module__ in ("posix", "_io") or isinstance(called.__self__, os.DirEntry)):
            made += 1
            if made >= number:
                sys.setprofile(None)
                left.pop(0)()
                sys.setprofile(noted if left else None)

    sys.setprofile(noted)
    try:
        run()
    finally:
        sys.setprofile(None)
    return made


def step_into(said: list[str]) -> Step:
    """Return a step of a stage that notes what it is told."""
    return Step(lambda event, text: said.append(text), None, None)


TOOLS = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "1.0")
MONDAY = date(2026, 11, 23)


def plan_of(image: str | None, project: Path = PROJECT, **more: Any) -> Plan:
    """Return the plan of an image on a host with tools of some version."""
    options = {"project": project, "tools": TOOLS, "today": MONDAY, **more}
    return make_plan(load_spec(project / "images.yaml"), image, **options)


def context_in(folder: Path) -> BuildContext:
    """Return a build's context with a cache and a dist/ of its own."""
    store = Store(folder / "cache")
    return BuildContext(store=store, dist=folder / "dist", today=MONDAY, accelerator=lambda: "tcg")


def released(dist: Path, image: str, version: str, body: bytes = b"an image", /, **more: object) -> Path:
    """Put a release with one file into dist/; returns its folder.

    Args:
        more: What else its manifest says, or says otherwise.
    """
    folder = dist / image / version
    folder.mkdir(parents=True)
    name, digest = f"{image}-{version}-amd64.qcow2", hashlib.sha256(body).hexdigest()
    (folder / name).write_bytes(body)
    manifest = {
        "image": image,
        "version": version,
        "released": "2026-11-27T10:00:00+00:00",
        "machine": {"cpus": 2, "memory": "2 GiB", "ports": None},
        "files": {"qcow2": {"name": name, "bytes": len(body), "sha256": digest}},
        "verdict": {"passed": True, "files": {"qcow2": {"sha256": digest}}, "checks": [{"name": "qcow2-virtio-bios"}]},
        **more,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@functools.cache
def _fetched() -> dict[str, str]:
    argv = [sys.executable, "-m", "invoke", "fetch", "toolbox", "--json"]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return {event["name"]: event["path"] for event in events if event["event"] == "file"}


def pinned_tools(folder: Path) -> Path:
    """Return a folder with `kubectl` and `helm` in it; skips the test where they cannot be had."""
    found = _fetched()
    if not found:
        pytest.skip("kubectl and helm cannot be fetched here")
    into = folder / "tools"
    into.mkdir(exist_ok=True)
    for name, path in found.items():
        tool = into / name
        tool.write_bytes(Path(path).read_bytes())
        tool.chmod(0o755)
    return into


def free_port() -> int:
    """Return a port of localhost on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def _rsa_key() -> paramiko.PKey:
    return paramiko.RSAKey.generate(1024)  # soon made


def host_key(kind: str) -> paramiko.PKey:
    """Make a key for an ssh server: ed25519, ecdsa or rsa. Of rsa there is one, since it takes long to make."""
    if kind == "ecdsa":
        return paramiko.ECDSAKey.generate()
    if kind == "rsa":
        return _rsa_key()
    text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return paramiko.Ed25519Key(file_obj=io.StringIO(text))


def update_bundle(path: Path, files: dict[str, bytes], *, version: str, **wrong: str) -> Path:
    """Write a bundle as `dev-env update` takes it, of files that say one version.

    Args:
        wrong: Name -> SHA-256 to write instead of the right one.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} | wrong
    index = {name: {"version": version, "sha256": digest} for name, digest in digests.items()}
    members = {"update.json": json.dumps({"files": index}).encode(), **files}
    path.write_bytes(packed(members))
    return path


def image_archive(images: Mapping[str, Sequence[Mapping[str, bytes]]], **config: object) -> bytes:
    """Return an archive of container images, as `docker save` makes it.

    Args:
        images: Name -> its layers, each of them the files in it, which may be executed.
        config: What all of them say of how they are run, such as Cmd.
    """
    members: dict[str, bytes] = {}
    index = []
    for number, (name, layers) in enumerate(images.items()):
        names = [f"{number}.{place}.tar" for place in range(len(layers))]
        members |= {place: packed(layer) for place, layer in zip(names, layers, strict=True)}
        members[f"{number}.json"] = json.dumps({"config": config, "names": name}).encode()
        index.append({"Config": f"{number}.json", "RepoTags": [name], "Layers": names})
    return packed({"manifest.json": json.dumps(index).encode(), **members})


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return files as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def seed_texts(seed: Path) -> dict[str, str]:
    """Return the files of a NoCloud seed."""
    iso = pycdlib.PyCdlib()
    iso.open(str(seed))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    texts = {}
    for name in ("meta-data", "user-data"):
        with iso.open_file_from_iso(rr_path=f"/{name}") as file:
            texts[name] = file.read().decode()
    iso.close()
    return texts
