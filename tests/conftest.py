"""Fixtures of all tiers: a small project to plan and fetch in, beside the real one; and a shared directory."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sftp_client import Client, served
from vmimage import host
from vmimage.access.confined import Folder
from vmimage.util.memo import Memo

LOG = logging.getLogger("vmimage")
TESTS = Path(__file__).parent
# Seconds that one test may take; with the real k3s, e2e waits for hours where it must.
TIERS = {"unit": 60, "host": 600, "e2e": 5 * 3600}


def pytest_configure() -> None:
    """Take signals as a terminal gives them: what nohup, or a shell in the background, starts ignores some."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their tier, so that `-m host` takes them, and bound them."""
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier in TIERS:
            item.add_marker(tier)
            item.add_marker(pytest.mark.timeout(TIERS[tier]))


@pytest.fixture(autouse=True)
def _nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give back what a process has once, and fail a test that leaves it otherwise: later tests would depend on it."""
    if request.path.relative_to(TESTS).parts[0] not in ("unit", "host"):
        yield
        return
    memory, before = host._memo, process_state()
    host._memo = Memo()
    yield
    host._memo = memory
    for handler in LOG.handlers[:]:
        LOG.removeHandler(handler)
        with contextlib.suppress(OSError):  # a test's disk may be full
            handler.close()
    LOG.propagate = True
    LOG.setLevel(logging.NOTSET)
    assert process_state() == before, "a test leaves the process as it was"


def process_state() -> dict[str, object]:
    """Return what tests share without a word: the environment, the folder, the umask, the handlers of signals."""
    os.umask(mask := os.umask(0o077))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    folder = Path("/proc/self/cwd").readlink()
    return {"environment": environment, "folder": folder, "umask": mask, "signals": handlers, "path": sys.path[:]}


IMAGES = """\
default: small
bases:
  trixie:
    suite: trixie
    packages: [systemd, openssh-server]
pins:
  tool:
    version: v1.2.3+x1
    sha256:
      amd64: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    locations:
      - url: https://downloads.invalid/{version}/tool-{arch}.tar.gz
        member: ["linux-{arch}/tool"]
      - pypi: a-distribution==2.0.0
        arch: amd64
        member: [inner.tgz, package/tool]
components:
  tool:
    summary: a tool
    step: 20-tool.sh
    pins: [tool]
    packages: [fuse3]
images:
  small:
    summary: a small image
    base: trixie
    components: [tool]
    disk: 8 GiB
    formats:
      qcow2: {}
"""

FILES = {
    "images.yaml": IMAGES,
    "provision/run-step": "#!/bin/sh\n",
    "provision/base.sh": "#!/bin/sh\n",
    "provision/base-packages.sh": "#!/bin/sh\n",
    "provision/20-tool.sh": "#!/bin/sh\n",
    "provision/99-seal.sh": "#!/bin/sh\n",
    "provision/files/20-tool/etc/tool.conf": "a = 1\n",
    "packer/image.pkr.hcl.j2": "",
    "templates/appliance.ovf.j2": "",
    "templates/Vagrantfile.j2": "",
    **{f"tests/image/{name}.py": "" for name in ("conftest", "test_hygiene", "test_machine", "test_tool")},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one image, one component and one pin."""
    root = tmp_path / "project"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A shared directory, and beside it what nobody may see."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "file").write_text("content")
    return root


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with served(Folder(root)) as (client, _):
        yield client
