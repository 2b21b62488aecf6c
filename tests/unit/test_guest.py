"""Logging in, against real ssh servers with host keys of all kinds."""

from __future__ import annotations

import socket
from pathlib import Path

import paramiko
import pytest

from tests.ssh_server import ssh_server
from tests.tools import free_port, host_key
from vmimage.access import login as guest
from vmimage.access.known_hosts import host_name, known_keys, record
from vmimage.access.login import Address, log_in
from vmimage.util.errors import HostError, InputError
from vmimage.vm.ssh import make_key

ED25519, OTHER, ECDSA, RSA = host_key("ed25519"), host_key("ed25519"), host_key("ecdsa"), host_key("rsa")
KEYGEN = "ssh-keygen -lf /etc/ssh/ssh_host_{}_key.pub"


class Here:
    """One user, one port, one file of known hosts."""

    def __init__(self, folder: Path) -> None:
        self.key = make_key(folder).private
        self.known_hosts = folder / "state" / "known_hosts"
        self.port = free_port()

    def log_in(self, host_key: str | None = None, host: str = "127.0.0.1") -> paramiko.PKey:
        """Log in; returns the key of who answered."""
        address = Address(host=host, port=self.port, key=self.key, host_key=host_key)
        with log_in(address, self.known_hosts) as client:
            transport = client.get_transport()
            assert transport
            return transport.get_remote_server_key()

    def refused(self, host_key: str | None = None) -> InputError:
        with pytest.raises(InputError) as refused:
            self.log_in(host_key)
        return refused.value

    def known(self) -> list[paramiko.PKey]:
        return known_keys(self.known_hosts, host_name("127.0.0.1", self.port))

    def record(self, *keys: paramiko.PKey) -> None:
        record(self.known_hosts, host_name("127.0.0.1", self.port), keys)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def test_unknown_machine_is_refused_and_its_fingerprint_told(here: Here) -> None:
    with ssh_server(ED25519, port=here.port):
        error = here.refused()
    assert error.message == (
        f"the host key of dev@127.0.0.1:{here.port} is not known: ssh-ed25519 {ED25519.fingerprint}"
    )
    assert KEYGEN.format("ed25519") in error.hint
    assert "--host-key SHA256:…" in error.hint
    assert "`invoke run` is still starting" in error.hint
    assert here.known() == []


@pytest.mark.parametrize("ending", ["", "="])
def test_machine_whose_fingerprint_is_given_is_let_in_and_recorded(here: Here, ending: str) -> None:
    with ssh_server(ED25519, port=here.port):
        assert here.log_in(f"{ED25519.fingerprint}{ending}") == ED25519
        assert here.log_in() == ED25519
    assert here.known() == [ED25519]


def test_second_machine_is_refused_until_its_fingerprint_is_given(here: Here) -> None:
    here.record(ED25519)
    with ssh_server(OTHER, port=here.port):
        error = here.refused()
        assert "another machine than before answers" in error.message
        assert f"ssh-ed25519 {OTHER.fingerprint}" in error.message
        assert "--host-key SHA256:…" in error.hint
        assert "another" in here.refused(ED25519.fingerprint).message
        assert here.known() == [ED25519]
        assert here.log_in(OTHER.fingerprint) == OTHER
        assert here.known() == [OTHER]


def test_fingerprint_of_another_machine_is_refused_and_the_answers_told(here: Here) -> None:
    with ssh_server(ED25519, ECDSA, port=here.port):
        error = here.refused(OTHER.fingerprint)
    assert f"ssh-ed25519 {ED25519.fingerprint}, ecdsa-sha2-nistp256 {ECDSA.fingerprint}" in error.message
    assert here.known() == []


@pytest.mark.parametrize("key", [ED25519, ECDSA, RSA], ids=["ed25519", "ecdsa", "rsa"])
def test_fingerprint_of_any_key_of_the_machine_does(here: Here, key: paramiko.PKey) -> None:
    with ssh_server(RSA, ECDSA, ED25519, port=here.port):
        assert here.log_in(key.fingerprint) == key
        assert here.log_in() == key
        here.record(RSA, ECDSA, ED25519)
        assert here.log_in(key.fingerprint) == key
    assert here.known() == [RSA, ECDSA, ED25519]


def test_machine_is_asked_for_the_kind_of_key_that_is_known(here: Here) -> None:
    here.record(ED25519)
    with ssh_server(ECDSA, ED25519, port=here.port):
        assert here.log_in() == ED25519
    here.record(ECDSA)
    with ssh_server(ED25519, ECDSA, port=here.port):
        assert here.log_in() == ECDSA
    with ssh_server(ED25519, port=here.port):
        assert "another machine" in here.refused().message


def test_hint_names_the_file_of_the_key_that_answered(here: Here) -> None:
    with ssh_server(ECDSA, port=here.port):
        assert KEYGEN.format("ecdsa") in here.refused().hint
    with ssh_server(RSA, port=here.port):
        assert KEYGEN.format("rsa") in here.refused().hint


def test_localhost_is_the_same_machine(here: Here) -> None:
    here.record(ED25519)
    with ssh_server(ED25519, port=here.port):
        assert here.log_in(host="localhost") == ED25519


@pytest.mark.parametrize("text", [b"[127.0.0.1]:2222 ssh-ed25519 AAA", b"\xff\x00\x80" * 100, b""])
def test_damaged_file_knows_nobody(here: Here, text: bytes) -> None:
    here.record()
    here.known_hosts.parent.mkdir(exist_ok=True)
    here.known_hosts.write_bytes(text)
    with ssh_server(ED25519, port=here.port):
        assert "is not known" in here.refused().message
        assert here.log_in(ED25519.fingerprint) == ED25519


@pytest.mark.parametrize("host_key", [None, ED25519.fingerprint], ids=["unknown", "given"])
def test_what_does_not_answer_ssh_is_told(here: Here, host_key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "SECONDS", 0.5)
    with pytest.raises(HostError, match="no machine answers ssh"):
        here.log_in(host_key)
    with socket.create_server(("127.0.0.1", here.port)), pytest.raises(HostError, match="no machine answers ssh"):
        here.log_in(host_key)
    with pytest.raises(InputError, match=r"--host a\.\.b: neither the name of a host nor an address"):
        here.log_in(host_key, host="a..b")


def test_address_of_six_has_brackets() -> None:
    assert str(Address(host="::1")) == "dev@[::1]:2222"
    with pytest.raises(InputError, match="no fingerprint"):
        Address(host_key="nonsense")
