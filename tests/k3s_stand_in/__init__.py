"""A program that stands for k3s in tests, where k3s itself cannot be downloaded. It is never part of a released image.

It answers kubectl and helm as a cluster does, and says that all that is deployed is well; but it runs no container,
routes no packet, and needs no default route, which the real one does.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

PROGRAM = Path(__file__).parent / "program"
VERSION = "v1.36.4+k3s1"
START = "from tests.k3s_stand_in.program.cli import main\nmain()\n"


def build(to: Path) -> str:
    """Write the program as one executable file, always the same bytes; returns its SHA-256."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in ("tests", "tests/k3s_stand_in"):
            archive.writestr(zipfile.ZipInfo(f"{package}/__init__.py"), b"")
        for path in sorted(PROGRAM.glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"tests/k3s_stand_in/program/{path.name}"), path.read_bytes())
        archive.writestr(zipfile.ZipInfo("__main__.py"), START)
    data = b"#!/usr/bin/env python3\n" + packed.getvalue()
    to.write_bytes(data)
    to.chmod(0o755)
    return hashlib.sha256(data).hexdigest()
