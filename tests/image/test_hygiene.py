"""What must not be in an image, looked for on the exported disk itself before anything booted it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmimage.disk.raw import RawDisk

from .conftest import Context


def test_no_build_key_in_any_byte(disk: RawDisk, context: Context) -> None:
    if not context.build_key:
        pytest.skip("the key of this image's bake is not known here; the next test looks for any key")
    body = context.build_key.split()[1].encode()
    assert not list(disk.search(re.compile(re.escape(body))))


def test_no_key_in_any_byte_but_in_files_of_packages(disk: RawDisk) -> None:
    # Whole keys only: programs contain the markers. Packages bring keys as examples and for self-tests, in /usr.
    public = rb"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[A-Za-z0-9+/]{43}|ssh-rsa AAAAB3NzaC1yc2E[A-Za-z0-9+/]{300,}"
    private = rb"-----BEGIN (?:OPENSSH|RSA|EC) PRIVATE KEY-----\n[A-Za-z0-9+/]{60,}"
    found = {offset: disk.owner(offset) for offset, _ in disk.search(re.compile(public + b"|" + private))}
    assert found, "the search works: cloud-init brings an example"
    assert not {hex(offset): path or "free space" for offset, path in found.items() if not path.startswith("/usr/")}


def test_no_host_keys(tree: Path) -> None:
    assert not list(tree.glob("etc/ssh/ssh_host_*"))


def test_empty_machine_id(tree: Path) -> None:
    assert (tree / "etc/machine-id").read_bytes() == b""
    other = tree / "var/lib/dbus/machine-id"
    assert not other.exists() or other.is_symlink()


@pytest.mark.parametrize(
    "path", ["var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "var/lib/cloud/instance"]
)
def test_no_identity_in(tree: Path, path: str) -> None:
    assert not (tree / path).exists()


def test_every_password_is_locked(tree: Path) -> None:
    hashes = {line.split(":")[0]: line.split(":")[1] for line in (tree / "etc/shadow").read_text().splitlines()}
    assert "dev" in hashes
    assert {user for user, text in hashes.items() if text[:1] not in ("*", "!")} == set()


def test_no_authorized_keys(tree: Path) -> None:
    assert not [path for path in tree.rglob("authorized_keys*") if path.stat().st_size]


def test_no_shell_history(tree: Path) -> None:
    homes = [tree / "root", *(tree / "home").iterdir()]
    traces = ("_history", ".lesshst", ".viminfo", ".wget-hsts", ".python_history")
    assert not [path for home in homes for path in home.iterdir() if path.name.endswith(traces)]


def test_no_apt_lists_or_caches(tree: Path) -> None:
    kept = {"lock", "partial", "auxfiles"}
    assert not [p for p in (tree / "var/lib/apt/lists").rglob("*") if p.is_file() and p.name not in kept]
    assert not list((tree / "var/cache/apt").rglob("*.deb")) + list((tree / "var/cache/apt").glob("*.bin"))


def test_no_logs_of_the_bake(tree: Path) -> None:
    logs = [path for path in (tree / "var/log").rglob("*") if path.is_file() and path.stat().st_size]
    assert not [str(path.relative_to(tree)) for path in logs]


def test_no_temporary_files(tree: Path) -> None:
    assert not list((tree / "tmp").iterdir())


def test_no_cluster_identity(tree: Path) -> None:
    k3s = tree / "var/lib/rancher/k3s"
    assert not (k3s / "server").exists()
    kept = [path for path in (k3s / "agent").iterdir() if path.name != "images"] if (k3s / "agent").exists() else []
    assert not kept
    assert not (tree / "etc/rancher/node").exists()
    assert not (tree / "etc/rancher/k3s/k3s.yaml").exists()
