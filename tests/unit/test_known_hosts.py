"""The file of known host keys."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import host_key
from vmimage.access.known_hosts import KINDS, LIMIT_BYTES, host_name, known_keys, parse_fingerprint, parse_key, record
from vmimage.util.errors import HostError, InputError

ED25519, OTHER = host_key("ed25519"), host_key("ed25519")
ECDSA, RSA = host_key("ecdsa"), host_key("rsa")
# As `ssh-keygen` wrote them.
PUBLIC = "AAAAC3NzaC1lZDI1NTE5AAAAIIaM3gS5jzBbXzexQ0tfY8tfk0f9y2P5G9LN+J28FrEC"
FINGERPRINT = "SHA256:3PAZdHF8ATB1jyNoOB5r3q/IfXJ/qOJgH2pJNAU1utk"
NAME = "[127.0.0.1]:2222"


def line(name: str, key: paramiko.PKey) -> str:
    return f"{name} {key.get_name()} {key.get_base64()}\n"


@pytest.fixture
def known_hosts(tmp_path: Path) -> Path:
    return tmp_path / "state" / "known_hosts"


def test_names_are_those_of_ssh_programs() -> None:
    assert host_name("127.0.0.1", 2222) == NAME
    assert host_name("192.0.2.1", 22) == "192.0.2.1"
    assert host_name("::1", 2222) == "[::1]:2222"


def test_what_was_recorded_is_known_and_nobody_else_may_read_it(known_hosts: Path) -> None:
    assert known_keys(known_hosts, NAME) == []
    assert record(known_hosts, NAME, [ED25519, ECDSA, RSA])
    assert known_keys(known_hosts, NAME) == [ED25519, ECDSA, RSA]
    theirs = paramiko.HostKeys(str(known_hosts))
    assert all(theirs.check(NAME, key) for key in (ED25519, ECDSA, RSA))
    assert known_hosts.read_text() == line(NAME, ED25519) + line(NAME, ECDSA) + line(NAME, RSA)
    assert known_hosts.stat().st_mode & 0o777 == 0o600
    assert known_hosts.parent.stat().st_mode & 0o777 == 0o700


def test_new_keys_replace_those_of_that_address_only(known_hosts: Path) -> None:
    known_hosts.parent.mkdir()
    known_hosts.write_text(line(f"{NAME},b", ED25519) + line("a", ECDSA) + line(NAME, RSA))
    assert record(known_hosts, NAME, [OTHER])
    assert known_hosts.read_text() == line("b", ED25519) + line("a", ECDSA) + line(NAME, OTHER)
    before = known_hosts.stat()
    assert not record(known_hosts, NAME, [OTHER])
    assert known_hosts.stat() == before
    assert record(known_hosts, NAME, [])
    assert (known_keys(known_hosts, NAME), known_keys(known_hosts, "a")) == ([], [ECDSA])


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[:40],
        lambda good: good[:-9] + b"\n",
        lambda good: b"\x00\xff\xfe" * 99,
        lambda good: b"[127.0.0.1]:2222 ssh-ed25519\n# no key\n\n",
        lambda good: good.replace(b"ssh-ed25519", b"ssh-rsa"),
        lambda good: good.replace(b"127", b"12\xe97"),
        lambda good: b"@revoked " + good,
        lambda good: b"x" * (LIMIT_BYTES + 9),
    ],
)
def test_lines_that_do_not_parse_are_left_out(damage: Callable[[bytes], bytes], known_hosts: Path) -> None:
    known_hosts.parent.mkdir()
    known_hosts.write_bytes(damage(line(NAME, ED25519).encode()))
    assert known_keys(known_hosts, NAME) == []
    with known_hosts.open("a") as file:
        file.write("\n" + line(NAME, ECDSA))
    assert known_keys(known_hosts, NAME) == [ECDSA]
    record(known_hosts, NAME, [ED25519])
    assert known_keys(known_hosts, NAME) == [ED25519]


def test_file_stays_small_and_keeps_the_newest(known_hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known_hosts.parent.mkdir()
    monkeypatch.setattr("vmimage.access.known_hosts.LIMIT_BYTES", limit := 10_000)
    known_hosts.write_text("".join(line(f"[127.0.0.1]:{port}", ED25519) for port in range(200)))
    assert record(known_hosts, "new", [ECDSA])
    assert known_hosts.stat().st_size < limit + 1000
    assert known_keys(known_hosts, "[127.0.0.1]:199") == [ED25519]
    assert known_keys(known_hosts, "[127.0.0.1]:1") == []
    assert known_keys(known_hosts, "new") == [ECDSA]


def test_commands_at_the_same_time_lose_no_line(known_hosts: Path) -> None:
    threads = [threading.Thread(target=record, args=(known_hosts, f"h{number}", [ED25519])) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(known_keys(known_hosts, f"h{number}") == [ED25519] for number in range(20))
    assert sorted(path.name for path in known_hosts.parent.iterdir()) == ["known_hosts", "known_hosts.lock"]


def test_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="known_hosts cannot be used") as refused:
        record(tmp_path / "file" / "known_hosts", NAME, [ED25519])
    assert "VMIMAGE_STATE" in refused.value.hint
    (tmp_path / "known_hosts").mkdir()
    with pytest.raises(HostError, match="known_hosts cannot be used"):
        known_keys(tmp_path / "known_hosts", NAME)


def test_fingerprint_is_that_of_ssh_keygen() -> None:
    key = parse_key("ssh-ed25519", PUBLIC)
    assert key
    assert parse_fingerprint(FINGERPRINT) == parse_fingerprint(f"{FINGERPRINT}=") == key.fingerprint


@pytest.mark.parametrize("text", ["", "SHA256:", "MD5:00:11", "SHA256:" + "A" * 42, f"sha256:{'A' * 43}", "A" * 43])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no fingerprint") as refused:
        parse_fingerprint(text)
    assert refused.value.hint


def test_keys_of_every_kind_are_read_and_only_when_whole() -> None:
    for key in (ED25519, ECDSA, RSA):
        text = key.get_base64()
        assert parse_key(key.get_name(), text) == key
        longer = base64.b64encode(key.asbytes() + b"\0").decode()
        for wrong in (text[:-4], text[4:], longer, f" {text}", text.replace("A", "é", 1)):
            assert parse_key(key.get_name(), wrong) is None
    assert parse_key("ssh-ed25519", ECDSA.get_base64()) is None


@given(kind=st.sampled_from(KINDS), rest=st.binary(max_size=200))
def test_no_bytes_are_a_traceback(kind: str, rest: bytes) -> None:
    for data in (rest, len(kind).to_bytes(4) + kind.encode() + rest):  # half of them say what they are
        key = parse_key(kind, base64.b64encode(data).decode())
        assert key is None or key.asbytes() == data


def test_lines_of_others_stay_as_they_are_and_are_told(known_hosts: Path) -> None:
    known_hosts.parent.mkdir()
    foreign = [
        b"# mine\n",
        b"\n",
        b"@revoked * ssh-ed25519 AAAA\n",
        b"|1|abc=|def= ssh-ed25519 AAAA\r\n",
        b"\x00\xff binary\x85\x1c\n",
        line("other", ECDSA).encode().replace(b"\n", b"  a comment \r\n"),
    ]
    known_hosts.write_bytes(b"".join(foreign) + line(f"{NAME},b", ED25519).encode() + b"cut short ssh-ed255")
    told: list[str] = []
    assert known_keys(known_hosts, NAME, told.append) == [ED25519]
    assert told == [f"{known_hosts}: 4 lines are no host keys, and not used; the first is line 3"]
    assert record(known_hosts, NAME, [OTHER])
    kept = b"".join(foreign) + line("b", ED25519).encode() + b"cut short ssh-ed255\n"
    assert known_hosts.read_bytes() == kept + line(NAME, OTHER).encode()
    assert record(known_hosts, NAME, [])
    assert known_hosts.read_bytes() == kept


def test_pipe_is_no_file_of_keys_and_is_not_waited_for(known_hosts: Path) -> None:
    known_hosts.parent.mkdir()
    os.mkfifo(known_hosts)
    assert known_keys(known_hosts, NAME) == []


def test_file_that_others_can_write_is_not_believed(known_hosts: Path) -> None:
    record(known_hosts, NAME, [ED25519])
    known_hosts.chmod(0o646)
    for use in (lambda: known_keys(known_hosts, NAME), lambda: record(known_hosts, NAME, [OTHER])):
        with pytest.raises(HostError, match="other users can write to it"):
            use()
    known_hosts.chmod(0o600)
    assert known_keys(known_hosts, NAME) == [ED25519]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_file_of_another_user_is_not_believed(known_hosts: Path) -> None:
    record(known_hosts, NAME, [ED25519])
    os.chown(known_hosts, 54321, 54321)
    with pytest.raises(HostError, match="other users can write to it"):
        known_keys(known_hosts, NAME)
