"""The base against mmdebstrap itself, with a mirror of one package."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.tools import context_in, plan_of, step_into
from vmimage import host
from vmimage.stages import base as making
from vmimage.stages.base import base_stage, make_base
from vmimage.util.errors import BuildError

HIDDEN = "t0psecret"
# Mmdebstrap says so when it has the packages, and can read them.
REACHED = "I: installing essential packages"
CONTROL = """\
Package: base-files
Version: 0.1
Architecture: amd64
Essential: yes
Priority: required
Maintainer: nobody <nobody@example.org>
Description: stands in
"""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian mirror of one package."""
    root = tmp_path_factory.mktemp("a mirror")
    package = tmp_path_factory.mktemp("package")
    index = root / "dists/trixie/main/binary-amd64/Packages"
    for folder in (package / "DEBIAN", root / "pool", index.parent):
        folder.mkdir(parents=True)
    package.chmod(0o755)
    (package / "DEBIAN/control").write_text(CONTROL)
    deb = root / "pool/base-files_0.1_amd64.deb"
    argv = ["dpkg-deb", "--build", "--root-owner-group", str(package), str(deb)]
    subprocess.run(argv, check=True, capture_output=True)
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    index.write_text(f"{CONTROL}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    digest = hashlib.sha256(index.read_bytes()).hexdigest()
    (root / "dists/trixie/Release").write_text(
        "Origin: Debian\nLabel: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 01 Nov 2025 00:00:00 UTC\n"
        "Architectures: amd64\nComponents: main\n"
        f"SHA256:\n {digest} {index.stat().st_size} main/binary-amd64/Packages\n"
    )
    return root


class Handler(SimpleHTTPRequestHandler):
    asked: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
        self.asked.add(self.headers.get("Authorization"))
        if self.headers.get("Authorization"):
            super().do_GET()
        else:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="m"')
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[int, set[str | None]]]:
    """Serve a folder to those who give a password; yields the port, and what was given."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_port, Handler.asked
        server.shutdown()


def unpacked(tmp_path: Path, lines: list[str]) -> str:
    """Unpack a base from these lines, which ends since it has no dpkg; returns the error that this ends with."""
    plan = plan_of("toolbox", debian_mirrors=lines)
    base = base_stage(plan, context_in(tmp_path))
    object.__setattr__(base, "packages", ("base-files",))
    work = tmp_path / "cache" / "work" / "base-01234567"
    work.mkdir()
    argv = making.mmdebstrap_command(base, Path("/tree"))
    assert HIDDEN not in " ".join(argv)
    with pytest.raises(BuildError) as refused:
        make_base(base, work, step_into([]))
    return refused.value.message


def test_local_mirror(tmp_path: Path, mirror: Path) -> None:
    uri = str(mirror).replace(" ", "%20")
    lines = host.debian_mirrors("trixie", f"deb [trusted=yes] file://{uri} trixie main")
    message = unpacked(tmp_path, lines)
    assert REACHED in message, message


def test_password_of_a_mirror_reaches_apt(tmp_path: Path, mirror: Path) -> None:
    with served(mirror) as (port, given):
        line = f"deb [trusted=yes] http://ci:{HIDDEN}@127.0.0.1:{port} trixie main"
        message = unpacked(tmp_path, host.debian_mirrors("trixie", line))
    assert REACHED in message, message
    assert HIDDEN not in message
    assert any(one and one.startswith("Basic ") for one in given)
