"""Releases, keys and signatures of ssh-keygen, for tests of them."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_release import BODY, export, make
from vmimage.publish.signatures import STATEMENTS, Checked, check_release, sign_release
from vmimage.publish.ssh import Trust

__all__ = ["export"]
KEYGEN = str(shutil.which("ssh-keygen"))
PROVENANCE, VERDICT = STATEMENTS
NAME = "releases@example.org"


def keygen(*args: str | Path) -> str:
    return subprocess.run([KEYGEN, *args], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def make_key(path: Path, passphrase: str = "") -> Path:
    keygen("-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", path)
    return path


def allow(path: Path, key: Path, *, name: str = NAME, options: str = "") -> Path:
    """Write a file of allowed signers, with one."""
    path.write_text(f"{name} {options}{key.with_name(f'{key.name}.pub').read_text()}")
    return path


def nothing(_: object) -> None:
    """Nobody is to touch anything."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys, and their files of allowed signers."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        allow(folder / f"allow-{name}", make_key(folder / name))
    return folder


@pytest.fixture
def release(export: Path, tmp_path: Path) -> Path:
    """A release that nobody signed."""
    return make(export, tmp_path / "dist").path


@pytest.fixture(scope="module")
def signed_once(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that is signed, and not to be changed."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "toolbox-amd64.qcow2").write_bytes(BODY)
    made = make(folder, folder / "dist").path
    sign_release(made, home / "mine", nothing)
    return made


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    """A release that is signed."""
    return Path(shutil.copytree(signed_once, tmp_path / "dist" / "toolbox" / signed_once.name))


def check(folder: Path, home: Path) -> Checked:
    return check_release(folder, Trust(allowed=home / "allow-mine"))


def listed(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def statement(folder: Path, name: str) -> dict[str, Any]:
    payload = json.loads((folder / name).read_bytes())["payload"]
    return dict(json.loads(base64.b64decode(payload)))
