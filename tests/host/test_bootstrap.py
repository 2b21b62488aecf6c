"""`bootstrap` where Python, pip and the directory are not as it would like them; its packages are one of our own."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmimage import PROJECT

MAIN = """\
import os, sys
print("invoke", sys.argv[1:], os.getcwd())
"""


def wheel(folder: Path, version: str) -> str:
    """Write a package called invoke; returns its line in a lock."""
    files = {
        "invoke/__init__.py": f"version = {version!r}\n",
        "invoke/__main__.py": MAIN,
        f"invoke-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: invoke\nVersion: {version}\n",
        f"invoke-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},sha256={_digest(text)},{len(text)}" for name, text in files.items()]
    files[f"invoke-{version}.dist-info/RECORD"] = "\n".join([*record, f"invoke-{version}.dist-info/RECORD,,\n"])
    path = folder / f"invoke-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as package:
        for name, text in files.items():
            package.writestr(name, text)
    return f"invoke=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@dataclass(frozen=True)
class Checkout:
    """A project that needs one package, and an index of it."""

    root: Path
    wheels: Path

    def lock(self, version: str) -> None:
        (self.root / "requirements.txt").write_text(wheel(self.wheels, version))

    def run(
        self, *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, umask: int = 0o022
    ) -> subprocess.CompletedProcess[str]:
        index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "VMIMAGE_"))}
        return subprocess.run(
            [str(self.root / "bootstrap"), *args],
            cwd=cwd or self.root,
            env={**kept, **index, **(env or {})},
            umask=umask,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    root = tmp_path_factory.mktemp("a checkout, with spaces")
    made = Checkout(root, tmp_path_factory.mktemp("wheels"))
    shutil.copy(PROJECT / "bootstrap", root)
    (root / "apt-packages.txt").write_text("python3 | python3 | 3.11 | runs this project\n")
    (root / "requirements-build.txt").write_text("")
    made.lock("1.0")
    return made


def version(checkout: Checkout) -> str:
    """Return the version of what is installed."""
    argv = [str(checkout.root / ".venv/bin/python"), "-I", "-c", "import invoke; print(invoke.version)"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What users have in their environment, all at once."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "invoke").mkdir()
    (folder / "invoke" / "__init__.py").write_text("raise SystemExit('shadowed')")
    (folder / "pip.conf").write_text("[install]\nuser = true\n")
    return {
        "PIP_USER": "1",
        "PIP_TARGET": str(folder / "target"),
        "PIP_PREFIX": str(folder / "prefix"),
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_NO_DEPS": "1",
        "PIP_CONSTRAINT": "/none/constraints.txt",
        "PIP_CONFIG_FILE": str(folder / "pip.conf"),
        "PYTHONPATH": str(folder),
        "PYTHONHOME": "/none",
        "VIRTUAL_ENV": "/none",
        "CDPATH": "/usr",
    }


def test_settings_of_users_change_nothing(checkout: Checkout, hostile: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "invoke.py").write_text("raise SystemExit('the caller's')")
    done = checkout.run("invoke", "plan", cwd=tmp_path, env=hostile, umask=0o077)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"invoke ['--search-root', '{checkout.root}', 'plan'] {tmp_path}\n"
    assert not Path(hostile["PIP_TARGET"]).exists()


def test_nothing_is_written_where_nothing_is_missing(
    checkout: Checkout, hostile: dict[str, str], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(checkout.root / "bootstrap")
    checkout.root.chmod(0o555)
    try:
        argv, env = [str(link), "inv", "plan"], {**os.environ, **hostile}
        done = subprocess.run(argv, cwd=tmp_path, env=env, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"invoke ['--search-root', '{checkout.root}', 'plan'] {tmp_path}\n"
        assert checkout.run("--check").returncode == 0
    finally:
        checkout.root.chmod(0o755)


def test_what_works_stays_until_its_successor_does(checkout: Checkout) -> None:
    first = (checkout.root / ".venv").readlink()
    (checkout.root / "requirements.txt").write_text(f"invoke==2.0 --hash=sha256:{'0' * 64}\n")
    failed = checkout.run("invoke", "plan")
    assert failed.returncode == 3
    assert "what was in" in failed.stderr
    assert version(checkout) == "1.0"
    assert sorted(path.name for path in checkout.root.glob(".venv-*")) == [str(first)]

    checkout.lock("3.0")
    (checkout.root / ".venv-of-mine").mkdir()
    assert checkout.run("--check").returncode == 3
    done = checkout.run("invoke", "plan", env={"HOME": ""}, umask=0o002)
    assert done.returncode == 0, done.stderr
    assert version(checkout) == "3.0"
    assert (checkout.root / ".venv-of-mine").exists()
    assert (checkout.root / first).exists(), "a build may be running in it"


@pytest.mark.parametrize(
    ("config", "env", "said"),
    [
        ("[install]\ntarget = /tmp/elsewhere\n", {}, "pip.conf sends Python packages elsewhere: install.target"),
        ("", {"VMIMAGE_VENV": "{tmp}/a:b"}, "has a colon"),
        ("", {"VMIMAGE_VENV": "/proc/none/venv"}, "cannot write to /proc/none"),
        ("", {"VMIMAGE_VENV": "{tmp}"}, "no Python environment"),
    ],
)
def test_what_cannot_work_is_told(
    checkout: Checkout, tmp_path: Path, config: str, env: dict[str, str], said: str
) -> None:
    (tmp_path / "pip.conf").write_text(config)
    more = {name: value.format(tmp=tmp_path) for name, value in env.items()}
    place = {"VMIMAGE_VENV": str(tmp_path / "venv"), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), **more}
    done = checkout.run("invoke", "plan", env=place)
    assert done.returncode == 3, done.stderr
    assert said in done.stderr
    assert (tmp_path / "pip.conf").exists()
