"""Families of what is said of the software in an image, and of what it was made from."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from tests.conftest import FILES
from tests.hostile.mutations import cuts, flips, mixed, no_files, wrong_values
from tests.hostile.texts import WORDS, good
from tests.hostile.trial import Case, Family
from tests.tools import context_in, image_archive, packed, plan_of, released
from vmimage.commands.rebuild import MOST_LEVELS, MOST_VALUES, recorded, require_same_sources
from vmimage.stages.release.gate.tracker import LEAST_PACKAGES, find_vulnerabilities, read_tracker
from vmimage.stages.release.manifest import read_manifest
from vmimage.stages.release.sbom.container_images import images_in
from vmimage.util.errors import VerifyError

VERSION = "20261127-01234567"
UNREAD = "nothing of it is read here"
DEFAULT = "it has a default"
STAGES = ("base", "bake", "export")


def manifests_to_rebuild(base: Path) -> Family:
    """What `invoke rebuild` reads of a manifest before it makes anything; other sources are refused with the reason."""
    inputs: dict[str, Any] = {
        "base": {
            "suite": "trixie",
            "packages": ["bash"],
            "period": "2026-W48",
            "mirrors": ["deb http://mirror.invalid/debian trixie main"],
            "files": {"provision/base.sh": {"sha256": "a" * 64, "executable": True}},
            "tools": {"mmdebstrap": "1.2"},
        },
        "bake": {"pins": {"helm": {"version": "v4", "sha256": "a" * 64}}},
        "export": {"tools": {"qemu-img": "7.0"}, "formats": {"qcow2": {}}},
    }
    facts: dict[str, Any] = {
        "stages": {name: {"key": "0123456789abcdef"} for name in STAGES},
        "inputs": inputs,
        "packages": {"bash": "5.2.37-2"},
        "debs": [{"package": "bash", "sha256": "a" * 64}],
        "git": {"commit": "c0" * 20},
    }
    for name, content in FILES.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(content)
    plan, context = plan_of(None, base), context_in(base)
    text = (released(base / "dist", "box", VERSION, **facts) / "manifest.json").read_text()

    def read(path: Path, _: Path) -> object:
        try:
            manifest = read_manifest(path)
        except ValueError as error:
            raise VerifyError(str(error)) from error
        known = recorded(manifest)
        if path.read_bytes() == text.encode():
            return known
        # This checkout made nothing of the kind: what differs is told.
        return require_same_sources(plan, context, known)

    def with_odd(odd: str) -> bytes:
        return (
            json.dumps({**json.loads(text), "inputs": {**inputs, "base": {**inputs["base"], "odd": 0}}})
            .replace('"odd": 0', f'"odd": {odd}')
            .encode()
        )

    def nested(levels: int, values: int) -> bytes:
        inner = json.dumps(dict.fromkeys(map(str, range(values)), 1))
        return with_odd('{"a": ' * levels + inner + "}" * levels)

    return Family(
        read=read,
        good=good(data=text.encode()),
        cases=(
            *wrong_values(json.loads(text)),
            Case(name="inputs in inputs", data=nested(MOST_LEVELS, 1)),
            Case(name="deep and wide", data=nested(700, 200_000)),
            Case(name="wide", data=nested(1, MOST_VALUES)),
            Case(name="many that are new", data=nested(1, MOST_VALUES // 2)),
            Case(name="a long text", data=with_odd('"' + "x" * 3_000_000 + '"')),
        ),
        codes=(2, 6),
    )


TRACKED = {
    "description": "a buffer overflow",
    "scope": "remote",
    "releases": {
        "trixie": {
            "status": "resolved",
            "repositories": {"trixie": "8.0-1"},
            "fixed_version": "8.1-1",
            "urgency": "low",
        }
    },
}
FILLING: dict[str, Any] = {f"package-{number}": {} for number in range(LEAST_PACKAGES)}


def security_data() -> Family:
    """What Debian's security tracker, or who stands in for it, says of a package of the image."""
    bom = json.dumps({"components": [{"purl": "pkg:deb/debian/curl@8.0-1?arch=source"}]})

    def of(entries: object) -> bytes:
        return json.dumps({**FILLING, "curl": entries}).encode()

    def read(path: Path, _: Path) -> object:
        return find_vulnerabilities(bom, read_tracker(path), "trixie")

    data = of({"CVE-2026-0001": TRACKED})
    told = {"CVE-2026-0001": TRACKED}
    return Family(
        read=read,
        good=good(data=data),
        cases=(
            *cuts(data),
            *mixed(data),
            *no_files(),
            *(Case(name=case.name, data=of(json.loads(case.text))) for case in wrong_values(told, each=3)),
            Case(name="a package twice", data=data[:-1] + b', "curl": {}}'),
            Case(name="a vulnerability twice", data=data[:-2] + b', "CVE-2026-0001": {}}}'),
            Case(name="few packages", data=json.dumps({"curl": told}).encode()),
            Case(name="deep", data=b'{"curl": ' + b"[" * 100_000),
        ),
        taken={
            "CVE-2026-0001: left out": "nothing is known of it then",
            "*.trixie: left out": "nothing is known of this suite then",
            "*.fixed_version: left out": "then it is not mended",
        },
        either={f"*.{key}*": f"{UNREAD}, if it is JSON" for key in ("description", "scope", "repositories")},
    )


def container_images() -> Family:
    """Archives of container images, packed in each way: names and digests, or nothing."""
    listed = [{"Config": "0.json", "RepoTags": ["docker.io/rancher/pause:3.6"], "Layers": ["0.tar"]}]
    entry = {"digest": f"sha256:{'a' * 64}", "annotations": {"io.containerd.image.name": "docker.io/rancher/pause:3.6"}}
    index = {"schemaVersion": 2, "manifests": [entry]}
    data = image_archive({"docker.io/rancher/pause:3.6": [{"pause": b"x"}]})

    def lists(name: str, text: object) -> Iterator[Case]:
        for case in wrong_values(text, each=2):
            yield Case(name=f"{name}: {case.name}", data=packed({name: case.text}))

    def read(path: Path, _: Path) -> object:
        found = images_in(path)
        if not found:
            raise VerifyError("no archive of images, or an empty one")
        return found

    return Family(
        read=read,
        good=good(data=data),
        cases=(
            *[*cuts(data)][:4],
            *flips(data[:512]),
            *mixed(data),
            *lists("manifest.json", listed),
            *lists("index.json", index),
            *(Case(name=f"gzip: {case.name}", data=case.text) for case in cuts(gzip.compress(data, mtime=0))),
            *(Case(name=f"zstd: {case.name}", data=case.text) for case in cuts(zstandard.compress(data))),
            Case(name="zstd of zeros", data=zstandard.compress(data[:512] + bytes(1 << 26))),
        ),
        codes=(6,),
        taken={
            "twice": "what is behind its end is not read",
            "garbage behind it": "what is behind its end is not read",
            "manifest.json: 0.Config*": UNREAD,
            "manifest.json: 0.Layers*": UNREAD,
            "index.json: schemaVersion*": UNREAD,
        },
        either={"cut*": "the list may stand before it", "flipped*": WORDS, "* at 7/8": "the list stands before it"},
    )


SOFTWARE: dict[str, Callable[[Path], Family]] = {
    "manifests to rebuild": manifests_to_rebuild,
    "security data": lambda base: security_data(),
    "container images": lambda base: container_images(),
}
