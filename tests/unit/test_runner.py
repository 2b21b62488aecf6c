from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.tools import free_port
from vmimage.access.login import Address
from vmimage.commands.run_image import find_public_keys
from vmimage.util.errors import HostError, InputError
from vmimage.util.ports import require_free


def test_own_keys(tmp_path: Path) -> None:
    (tmp_path / "id_ed25519.pub").write_text("ssh-ed25519 AAAA me\n")
    (tmp_path / "id_rsa.pub").write_text("ssh-rsa BBBB me\n")
    assert find_public_keys(None, tmp_path) == ["ssh-ed25519 AAAA me", "ssh-rsa BBBB me"]


def test_key_that_was_named(tmp_path: Path) -> None:
    (tmp_path / "k.pub").write_text("ecdsa-sha2-nistp256 AAAA")
    assert find_public_keys(str(tmp_path / "k.pub"), tmp_path) == ["ecdsa-sha2-nistp256 AAAA"]


def test_no_key_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no public ssh key") as refused:
        find_public_keys(None, tmp_path)
    assert "ssh-keygen" in refused.value.hint


def test_private_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "k").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret")
    with pytest.raises(InputError, match="is not a public ssh key") as refused:
        find_public_keys(str(tmp_path / "k"), tmp_path)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(InputError, match=f"--http-port {port}: no port"):
        require_free({"http": port})
    with pytest.raises(InputError, match=f"--ssh-port {port}: no port"):
        Address(port=port)


def test_ports_in_use_are_named() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port, free = busy.getsockname()[1], free_port()
        with pytest.raises(HostError, match=rf"in use on localhost: {port} \(ssh\)"):
            require_free({"ssh": port, "http": free})


def test_large_file_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "k.pub").write_text("ssh-ed25519 AAAA\n" * 10_000)
    with pytest.raises(InputError, match="not a public ssh key: larger than"):
        find_public_keys(str(tmp_path / "k.pub"), tmp_path)
