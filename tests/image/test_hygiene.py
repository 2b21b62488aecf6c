"""What must not be in an image, looked for on the exported disk itself before anything booted it."""

from __future__ import annotations

import re
import stat

import pytest

from vmimage.disk.ext4 import Tree
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


def test_no_host_keys(tree: Tree) -> None:
    assert not tree.find("/etc/ssh/ssh_host_*")


def test_empty_machine_id(tree: Tree) -> None:
    assert tree.read("/etc/machine-id") == b""
    other = tree.nodes.get("/var/lib/dbus/machine-id")
    assert not other or stat.S_ISLNK(other.mode)


@pytest.mark.parametrize(
    "path", ["/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret", "/var/lib/cloud/instance"]
)
def test_no_identity_in(tree: Tree, path: str) -> None:
    assert "/etc/machine-id" in tree.nodes, "the tree was read"
    assert path not in tree.nodes


def test_every_password_is_locked(tree: Tree) -> None:
    lines = tree.read("/etc/shadow").decode().splitlines()
    hashes = {line.split(":")[0]: line.split(":")[1] for line in lines}
    assert "dev" in hashes
    assert {user for user, text in hashes.items() if text[:1] not in ("*", "!")} == set()


@pytest.mark.parametrize("path", ["/etc/hostname", "/etc/hosts", "/etc/fstab"])
def test_modes_are_not_those_of_the_host_that_built_it(tree: Tree, path: str) -> None:
    assert stat.S_IMODE(tree.nodes[path].mode) == 0o644


def test_no_authorized_keys(tree: Tree) -> None:
    assert [node.path for node in tree.find("*/authorized_keys*") if node.size] == []


def test_no_shell_history(tree: Tree) -> None:
    assert "/home/dev/.bashrc" in tree.nodes
    traces = ("_history", ".lesshst", ".viminfo", ".wget-hsts", ".python_history")
    assert [node.path for node in (*tree.find("/root/*"), *tree.find("/home/*")) if node.path.endswith(traces)] == []


def test_no_apt_lists_or_caches(tree: Tree) -> None:
    kept = {"lock", "partial", "auxfiles"}
    lists = [node.path for node in tree.find("/var/lib/apt/lists/*") if stat.S_ISREG(node.mode)]
    assert [path for path in lists if path.rpartition("/")[2] not in kept] == []
    assert tree.find("/var/cache/apt/*.deb") + tree.find("/var/cache/apt/*.bin") == []


def test_no_logs_of_the_bake(tree: Tree) -> None:
    assert [node.path for node in tree.find("/var/log/*") if stat.S_ISREG(node.mode) and node.size] == []


def test_no_temporary_files(tree: Tree) -> None:
    assert "/tmp" in tree.nodes  # noqa: S108 - in the image
    assert [node.path for node in tree.find("/tmp/*")] == []  # noqa: S108 - the same


def test_no_cluster_identity(tree: Tree) -> None:
    k3s = "/var/lib/rancher/k3s"
    assert tree.find(f"{k3s}/server*") == []
    kept = [node.path for node in tree.find(f"{k3s}/agent/*") if not node.path.startswith(f"{k3s}/agent/images")]
    assert kept == []
    assert not {"/etc/rancher/node", "/etc/rancher/k3s/k3s.yaml"} & tree.nodes.keys()
