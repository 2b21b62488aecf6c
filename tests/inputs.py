"""Bundles of inputs for tests: small ones, whose index may say anything."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmimage.formats.archive import append, finish
from vmimage.inputs.bundle import INDEX
from vmimage.plan import Plan

URI = "http://deb.example/debian"
LINE = f"deb {URI} trixie main"
LIST_PATH, SIGNED_PATH = "dists/trixie/main/binary-amd64/Packages", "dists/trixie/InRelease"
DEB_PATH = "pool/main/a/a_1%2b1_amd64.deb"
LIST = b"Package: a\n" * 100
SIGNED = f" {hashlib.sha256(LIST).hexdigest()} 1100 main/binary-amd64/Packages\n".encode()
DEB, WHEEL, PIN = b"a package", b"a wheel", b"a tool"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def part() -> dict[str, Any]:
    lists = {SIGNED_PATH: digest(SIGNED), LIST_PATH: digest(LIST)}
    repository = {"uri": f"{URI}/", "suite": "trixie", "component": "main", "lists": lists}
    return {"repositories": [repository], "debs": {DEB_PATH: digest(DEB)}}


def index(packages: Sequence[str] = ("systemd", "openssh-server", "fuse3"), **changes: Any) -> dict[str, Any]:
    """Return what `index.json` says; `changes` are of its base."""
    base = {"suite": "trixie", "arch": "amd64", "period": "2026-W40", "mirrors": [LINE], "packages": sorted(packages)}
    return {
        "format": 1,
        "pins": {"tool": digest(PIN)},
        "bases": [{**base, "part": part(), **changes}],
        "python": {"version": "3.11", "platform": "linux-x86_64", "files": {"a-1-py3-none-any.whl": digest(WHEEL)}},
        "packer": part(),
        "compressed": {digest(LIST): digest(lzma.compress(LIST))},
    }


def changed(where: str, value: Any) -> dict[str, Any]:
    """Return an index with another value somewhere, as in `bases/0/suite`."""
    told = index()
    *path, last = [int(each) if each.isdigit() else each for each in where.split("/")]
    at: Any = told
    for each in path:
        at = at[each]
    at[last] = value
    return told


def members() -> dict[str, bytes]:
    """Return the files of a bundle, by their names."""
    return {digest(data): data for data in (SIGNED, lzma.compress(LIST), DEB, WHEEL, PIN)}


def archived(files: Mapping[str, bytes]) -> bytes:
    """Return an archive of these files."""
    archive = io.BytesIO()
    for name, data in files.items():
        append(archive, name, data)
    finish(archive)
    return archive.getvalue()


def bundle(path: Path, told: Any = None, files: Mapping[str, bytes] | None = None) -> Path:
    """Write a bundle."""
    text = json.dumps(told if told is not None else index()).encode()
    path.write_bytes(archived({INDEX: text, **(members() if files is None else files)}))
    return path


def bundle_for(path: Path, plan: Plan, **changes: Any) -> Path:
    """Write a bundle with the packages that a plan asks for."""
    return bundle(path, index(**{"packages": plan.packages, **changes}))
