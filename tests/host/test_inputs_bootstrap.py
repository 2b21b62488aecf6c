"""Bundles of inputs against pip, apt and bootstrap themselves, without a network."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.host.test_base import write_mirror
from tests.host.test_bootstrap import Checkout, wheel
from tests.tools import context_in, step_into
from vmimage import PROJECT, host
from vmimage.commands.bundle_inputs.packer import get_packer
from vmimage.commands.bundle_inputs.wheels import get_wheels
from vmimage.inputs.bundle import Index, PythonFiles, write_bundle
from vmimage.inputs.unpack import main as unpack
from vmimage.util.errors import FetchError
from vmimage.util.files import place

OPTIONS = "trusted=yes check-valid-until=no"
NO_PYTHON = PythonFiles(version="3", platform="x", files={})
OFFLINE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


# --- Python packages, and bootstrap --------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A project that needs one package, and an index of it."""
    found = Checkout(tmp_path / "a checkout", tmp_path / "wheels")
    for folder in (found.root, found.wheels):
        folder.mkdir()
    shutil.copy(PROJECT / "bootstrap", found.root)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "vmimage", found.root / "vmimage", ignore=ignored)
    (found.root / "apt-packages.txt").write_text("python3 | python3 | 3.11 | runs this project\n")
    (found.root / "requirements-build.txt").write_text("")
    (found.root / "requirements.txt").write_text(wheel(found.wheels, "1.0"))
    return found


def bundle_of_wheels(checkout: Checkout, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(checkout.wheels))
    files: dict[str, Path] = {}
    python = get_wheels(context_in(folder).store, step_into([]), files, checkout.root)
    write_bundle(folder / "inputs.tar", Index(pins={}, bases=(), python=python), files)
    return folder / "inputs.tar"


def bootstrapped(checkout: Checkout, bundle: Path) -> subprocess.CompletedProcess[str]:
    """Call bootstrap where there is no network, and no index either."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "VMIMAGE_"))}
    argv = [*OFFLINE, str(checkout.root / "bootstrap"), "invoke", "plan"]
    env["VMIMAGE_BUNDLE"] = bundle.name
    return subprocess.run(argv, cwd=bundle.parent, env=env, capture_output=True, text=True, check=False)


def test_bootstrap_takes_python_packages_from_a_bundle(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of_wheels(checkout, tmp_path, monkeypatch)
    first = bundle.read_bytes()
    bundle.unlink()
    # Another time, nothing is asked for: what the cache holds is not fetched again.
    shutil.rmtree(checkout.wheels)
    assert bundle_of_wheels(checkout, tmp_path, monkeypatch).read_bytes() == first
    done = bootstrapped(checkout, bundle)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("invoke ['--search-root', ")


def test_bootstrap_believes_no_wheel_of_a_bundle(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of_wheels(checkout, tmp_path, monkeypatch)
    (checkout.root / "requirements.txt").write_text(f"invoke==1.0 --hash=sha256:{'0' * 64}\n")
    done = bootstrapped(checkout, bundle)
    assert done.returncode == 3
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("data", [None, b"", b"\0" * 4096, b"x" * 4096])
def test_bootstrap_tells_of_a_bundle_that_is_none(checkout: Checkout, tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "inputs.tar").write_bytes(data)
    done = bootstrapped(checkout, tmp_path / "inputs.tar")
    assert done.returncode == 3
    assert "bootstrap: make it with `invoke bundle-inputs`" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in checkout.root.glob(".venv*")) == [".venv.lock"]


def test_python_package_that_is_not_locked_is_not_bundled(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout.root / "requirements.txt").write_text(f"invoke==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(FetchError, match="DO NOT MATCH THE HASHES"):
        bundle_of_wheels(checkout, tmp_path, monkeypatch)
    assert not (tmp_path / "inputs.tar").exists()


# --- Packer ----------------------------------------------------------------------------------------------------------


def test_packer_comes_with_the_lists_that_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.host.test_base.CONTROL", CONTROL)
    write_mirror(tmp_path / "mirror", tmp_path / "package", suites=("bookworm",))
    with (tmp_path / "mirror/dists/bookworm/Release").open("a") as release:
        release.write(f" {'0' * 64} 5 main/icons\n")
    (deb,) = (tmp_path / "mirror/pool").iterdir()
    store, files, warned = context_in(tmp_path).store, dict[str, Path](), list[str]()
    line = f"deb [trusted=yes check-valid-until=no] file://{tmp_path}/mirror bookworm main"
    packer = get_packer(store, line, step_into([]), warned.append, files)
    assert packer, warned
    assert list(packer.debs.values()) == [hashlib.sha256(deb.read_bytes()).hexdigest()]
    write_bundle(tmp_path / "a.tar", Index(pins={}, bases=(), python=NO_PYTHON, packer=packer), files)
    assert unpack("packer", str(tmp_path / "a.tar"), str(tmp_path / "out")) == 0
    assert (tmp_path / "out/0/pool" / deb.name).read_bytes() == deb.read_bytes()
    # As apt takes it, also on a host where other packages have it ask for other lists.
    apt = tmp_path / "apt"
    for folder in (apt / "lists/partial", apt / "cache/archives/partial"):
        folder.mkdir(parents=True)
    lines = host.debian_mirrors("bookworm", line)
    (sources,) = packer.lay(tmp_path / "again", lambda sha256, to: place(files[sha256], to), lines)
    (apt / "sources.list").write_text(sources)
    icons = "Acquire::IndexTargets::deb::Icons::"
    settings = {
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::State::Status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "root",
        f"{icons}MetaKey": "$(COMPONENT)/icons",
        f"{icons}ShortDescription": "icons",
        f"{icons}Description": "icons",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    for command in ("update", "download packer"):
        subprocess.run([*OFFLINE, "apt-get", *options, *command.split()], cwd=apt, check=True, capture_output=True)
    assert (apt / "packer_0.1_amd64.deb").read_bytes() == deb.read_bytes()


def test_packer_that_debian_did_not_sign_is_not_installed(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.host.test_base.CONTROL", CONTROL)
    write_mirror(tmp_path / "mirror", tmp_path / "package", suites=("bookworm",))
    files: dict[str, Path] = {}
    line = f"deb [{OPTIONS}] file://{tmp_path}/mirror bookworm main"
    packer = get_packer(context_in(tmp_path).store, line, step_into([]), print, files)
    write_bundle(tmp_path / "inputs.tar", Index(pins={}, bases=(), python=NO_PYTHON, packer=packer), files)
    with (checkout.root / "apt-packages.txt").open("a") as lines:
        lines.write("packer | packer | - | bakes the image\n")
    # A host without packer, on which nothing is installed.
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name not in ("packer", "apt-get", "dpkg-query"):
            (programs / program.name).symlink_to(program)
    for name, script in {
        "apt-get": f'case "$*" in *install*) touch {tmp_path}/installed ;; esac; exec /usr/bin/apt-get "$@"',
        "dpkg-query": 'echo "python3 installed"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    done = bootstrapped(checkout, tmp_path / "inputs.tar")
    assert done.returncode == 3
    assert "is not signed" in done.stderr
    assert "packer could not be had from inputs.tar (bookworm)" in done.stderr
    assert not (tmp_path / "installed").exists()


def test_packer_that_cannot_be_had_is_left_out(tmp_path: Path) -> None:
    warned = list[str]()
    line = "deb [trusted=yes] http://127.0.0.1:9/none bookworm main"
    assert get_packer(context_in(tmp_path).store, line, step_into([]), warned.append, {}) is None
    assert "Packer is not in the bundle" in warned[0]


CONTROL = """\
Package: packer
Version: {version}
Architecture: amd64
Maintainer: nobody <nobody@example.org>
Description: stands in
"""
