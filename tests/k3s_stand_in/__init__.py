"""A program that stands for k3s in tests, where k3s itself cannot be downloaded. It is never part of a released image.

It answers kubectl and helm as a cluster does, and says that all that is deployed is well; but it runs no container,
routes no packet, and needs no default route, which the real one does. At port 80 it tells where Traefik would lead to.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from tests.k3s_stand_in.program.version import VERSION

__all__ = ["NEWER", "VERSION", "build"]

PROGRAM = Path(__file__).parent / "program"
NEWER = "v1.36.5+k3s1"
START = "from tests.k3s_stand_in.program.cli import main\nmain()\n"


def build(to: Path, *, version: str = VERSION, comes_up: bool = True) -> str:
    """Write the program as one executable file, always the same bytes; returns its SHA-256.

    Args:
        comes_up: Whether `server` works; else it says its version, and fails when it is started.
    """
    texts = {path.name: path.read_text() for path in sorted(PROGRAM.glob("*.py"))}
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
