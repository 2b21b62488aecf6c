"""These checks run on a built image, by `invoke verify` and every build; never on the machine that starts them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from vmimage.disk.ext4 import Tree, read_tree
from vmimage.disk.raw import RawDisk

SAW_CHARACTERS = 1000
PATIENCE_SECONDS = 300.0
"""A pod of the real k3s takes a minute to start where two machines are emulated on two cores."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--context", help="JSON file that `invoke verify` writes: the machine, and what the image should be"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--context"):
        raise pytest.UsageError("tests/image checks built images: run `invoke verify FILE`")


@dataclass(frozen=True)
class Context:
    """What is known of the image and of the machine it was booted in."""

    values: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None

    def version(self, pin: str) -> str:
        """The version of a pin that this image was built with."""
        return str(self.facts["versions"][pin])


@pytest.fixture(scope="session")
def context(pytestconfig: pytest.Config) -> Context:
    """What the image should be."""
    return Context(json.loads(Path(pytestconfig.getoption("--context")).read_text()))


@pytest.fixture
def root(host: Host) -> Iterator[Host]:
    """The machine, with commands run as root."""
    with host.sudo():
        yield host


@pytest.fixture(autouse=True)
def saw(
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every command in the guest and its answer go into junit.xml, with the check that asked."""
    if "host" not in request.fixturenames:
        return
    backend = request.getfixturevalue("host").backend
    run, last = backend.run, [""]

    def recorded(command: str, *args: str, **options: object) -> Any:
        result = run(command, *args, **options)
        said = (result.stdout + result.stderr).strip()[:SAW_CHARACTERS]
        text = f"$ {backend.quote(command, *args)}\n{said}\n[{result.rc}]"
        if text != last[0]:
            # XML takes no control characters.
            record_property("saw", "".join(each for each in text if each.isprintable() or each in "\n\t"))
            last[0] = text
        return result

    monkeypatch.setattr(backend, "run", recorded)


@pytest.fixture(scope="session")
def disk(context: Context) -> RawDisk:
    """The image as a raw disk, as it was exported and never booted."""
    return RawDisk(Path(context.raw_disk))


@pytest.fixture(scope="session")
def tree(disk: RawDisk, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The files of the exported disk."""
    return read_tree(disk, tmp_path_factory.mktemp("tree"))


@pytest.fixture
def real(host: Host) -> None:
    """Skip what the tests' stand-in for k3s does not do."""
    if "stand-in" in host.check_output("k3s --version"):
        pytest.skip("the stand-in for k3s has no https, and runs no commands in pods")


@pytest.fixture
def address(host: Host) -> str:
    """Where ports arrive that are forwarded to the machine."""
    links = json.loads(host.check_output("ip -json -4 address show scope global"))
    (found,) = [each["local"] for link in links for each in link["addr_info"] if each.get("dynamic")]
    return str(found)


def seconds_until(done: Callable[[], bool], *, what: Callable[[], object] = lambda: "") -> float:
    """Ask until it is true, as long as a busy emulated machine may take; returns how long that took.

    Args:
        what: Tells what there is instead, for the error.
    """
    started = time.monotonic()
    while not done():
        assert time.monotonic() - started < PATIENCE_SECONDS, what()
        time.sleep(0.2)
    return time.monotonic() - started
