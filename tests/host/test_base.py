"""The base against mmdebstrap itself, with a mirror of one package."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.tools import context_in, plan_of, step_into
from vmimage import host
from vmimage.spec.snapshot import snapshot_lines, stamp
from vmimage.stages import base as making
from vmimage.stages.base import base_stage, make_base
from vmimage.util.errors import BuildError
from vmimage.util.run import Confine, run

HIDDEN = "t0psecret"
OLD, NEW = (datetime(2025, month, 1, tzinfo=UTC) for month in (11, 12))
# Mmdebstrap says so when it has the packages, and can read them.
REACHED = "I: installing essential packages"
CONTROL = """\
Package: base-files
Version: {version}
Architecture: amd64
Essential: yes
Priority: required
Maintainer: nobody <nobody@example.org>
Description: stands in
"""


def write_mirror(root: Path, package: Path, *, version: str = "0.1", suites: tuple[str, ...] = ("trixie",)) -> None:
    """Write a Debian mirror of one package, which is installed as /usr/share/version.

    Args:
        package: A folder for what is in the package.
    """
    control = CONTROL.format(version=version)
    for folder in (package / "DEBIAN", package / "usr/share", root / "pool"):
        folder.mkdir(parents=True)
    package.chmod(0o755)
    (package / "DEBIAN/control").write_text(control)
    (package / "usr/share/version").write_text(version)
    deb = root / f"pool/base-files_{version}_amd64.deb"
    argv = ["dpkg-deb", "--build", "--root-owner-group", str(package), str(deb)]
    subprocess.run(argv, check=True, capture_output=True)
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    listed = f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
    for suite in suites:
        index = root / f"dists/{suite}/main/binary-amd64/Packages"
        index.parent.mkdir(parents=True)
        index.write_text(listed)
        digest = hashlib.sha256(index.read_bytes()).hexdigest()
        (root / f"dists/{suite}/Release").write_text(
            f"Origin: Debian\nLabel: Debian\nSuite: stable\nCodename: {suite}\n"
            "Date: Sat, 01 Nov 2025 00:00:00 UTC\nValid-Until: Sat, 08 Nov 2025 00:00:00 UTC\n"
            "Architectures: amd64\nComponents: main\n"
            f"SHA256:\n {digest} {index.stat().st_size} main/binary-amd64/Packages\n"
        )


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian mirror of one package."""
    root = tmp_path_factory.mktemp("a mirror")
    write_mirror(root, tmp_path_factory.mktemp("package"))
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
    lines = host.debian_mirrors("trixie", f"deb [trusted=yes check-valid-until=no] file://{uri} trixie main")
    message = unpacked(tmp_path, lines)
    assert REACHED in message, message


def test_password_of_a_mirror_reaches_apt(tmp_path: Path, mirror: Path) -> None:
    with served(mirror) as (port, given):
        line = f"deb [trusted=yes check-valid-until=no] http://ci:{HIDDEN}@127.0.0.1:{port} trixie main"
        message = unpacked(tmp_path, host.debian_mirrors("trixie", line))
    assert REACHED in message, message
    assert HIDDEN not in message
    assert any(one and one.startswith("Basic ") for one in given)


def test_snapshot_of_each_date_has_the_packages_of_that_date(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    for moment, version in ((OLD, "1"), (NEW, "2")):
        for name, suites in (("debian", ("trixie", "trixie-updates")), ("debian-security", ("trixie-security",))):
            root = archive / name / stamp(moment)
            write_mirror(root, tmp_path / f"package-{name}-{version}", version=version, suites=suites)
    for moment, version in ((NEW, "2"), (OLD, "1")):
        lines = snapshot_lines(moment, "trixie", f"[trusted=yes] file://{archive}")
        base = base_stage(plan_of("toolbox", debian_mirrors=lines), context_in(tmp_path))
        object.__setattr__(base, "packages", ("base-files",))
        tree = tmp_path / f"tree-{version}"
        # One package is no system: it is unpacked, and that is all.
        argv = [
            {"--variant=minbase": "--variant=extract"}.get(argument, argument)
            for argument in making.mmdebstrap_command(base, tree)
            if "hook" not in argument
        ]
        sources = tmp_path / "sources.list"
        sources.write_text("".join(f"{line}\n" for line in lines))
        with sources.open() as file:
            run(argv, confine=Confine.FAKE_ROOT, stdin=file.fileno(), env={"TMPDIR": str(tmp_path)})
        assert (tree / "usr/share/version").read_text() == version
