"""Host keys on a serial console: whole, torn, and of guests that write whatever they like."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import host_key
from vmimage.access import host_keys
from vmimage.access.host_keys import WINDOW_BYTES, Follower, host_keys_recorded, told_keys
from vmimage.access.known_hosts import known_keys
from vmimage.util.console import Console

ED25519, OTHER, ECDSA = host_key("ed25519"), host_key("ed25519"), host_key("ecdsa")
NAME = "[127.0.0.1]:2222"
BOOT = (
    b"\x1b[2J\x1b[01;01HGRUB\r\n[    0.000000] Linux version 6.12\r\n[\x1b[0;32m  OK  \x1b[0m] Started ssh.service\r\n"
)
KERNEL = b"[   11.2] random: crng init done\r\n"


def line(key: paramiko.PKey, prefix: bytes = b"") -> bytes:
    return prefix + f"vmimage-host-key {key.get_name()} {key.get_base64()}\r\n".encode()


def torn(text: bytes, at: int) -> bytes:
    return text[:at] + KERNEL + text[at:]


BOTH = {"ssh-ed25519": ED25519, "ecdsa-sha2-nistp256": ECDSA}


@pytest.mark.parametrize("prefix", [b"", b"[    9.123456] host-keys[312]: ", b"\xff\xfe\x1b[0m"])
def test_keys_are_read_wherever_in_a_line_they_are(prefix: bytes) -> None:
    assert told_keys(BOOT + line(ED25519, prefix) + KERNEL + line(ECDSA, prefix) + BOOT) == BOTH


def test_torn_lines_are_no_keys() -> None:
    whole = line(ED25519)
    end = whole.index(b"\r")
    assert not [at for at in range(1, end) if told_keys(torn(whole, at))]
    assert not [at for at in range(end) if told_keys(whole[:at])]
    assert told_keys(torn(whole, 40) + whole + torn(whole, 60)) == {"ssh-ed25519": ED25519}


@pytest.mark.parametrize(
    "wrong",
    [
        line(ED25519).replace(b"ssh-ed25519", b"ecdsa-sha2-nistp256"),
        line(ECDSA).replace(b"ecdsa-sha2-nistp256", b"ssh-ed25519"),
        line(host_key("rsa")),
        line(ED25519).replace(b"AAAA", b"AAAB"),
        line(ED25519).replace(b"\r\n", b"AAAA\r\n"),
        line(ED25519).replace(b"vmimage", b"Vmimage"),
        b"vmimage-host-key ssh-ed25519 " + base64.b64encode(ED25519.asbytes() + b"\0") + b"\r\n",
        b"vmimage-host-key ecdsa-sha2-nistp256 "
        + base64.b64encode(ECDSA.asbytes()[:-1] + bytes([ECDSA.asbytes()[-1] ^ 1]))
        + b"\r\n",
        b"vmimage-host-key ssh-ed25519 \r\n",
        b"vmimage-host-key ssh-ed25519 " + b"A" * 100000,
    ],
    ids=["as ecdsa", "as ed25519", "rsa", "length", "more", "word", "byte", "point", "nothing", "long"],
)
def test_what_is_not_exactly_a_key_of_its_kind_is_none(wrong: bytes) -> None:
    assert told_keys(wrong) == {}
    assert told_keys(wrong + line(OTHER)) == {"ssh-ed25519": OTHER}


PIECES = st.one_of(
    st.binary(max_size=300),
    st.sampled_from([BOOT, KERNEL, line(ECDSA), line(ED25519, b"[    9.1] host-keys[312]: ")]),
    st.builds(torn, st.just(line(ED25519)), st.integers(0, 99)),
)


@given(pieces=st.lists(PIECES, max_size=20), sizes=st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_however_the_console_is_cut_into_reads(
    pieces: list[bytes], sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    serial = tmp_path_factory.mktemp("serial") / "log"
    text = b"\r\n".join([*pieces, line(ED25519), line(ECDSA)])
    follower, written = Follower(serial), 0
    while written < len(text):
        for size in sizes:
            with serial.open("ab") as file:
                file.write(text[written : written + size])
            written += size
            follower.read()
    assert follower.keys == BOTH


def test_console_that_was_cut_is_read_on(tmp_path: Path) -> None:
    """What grows without end is cut while it is read (vm/serial.py)."""
    serial = tmp_path / "log"
    serial.write_bytes(b"much" * 10_000)
    follower = Follower(serial)
    assert not follower.read()
    serial.write_bytes(BOOT + line(ED25519))
    assert follower.read()
    assert follower.keys == {"ssh-ed25519": ED25519}


def test_guest_that_writes_gigabytes_costs_little_and_is_seen_again(tmp_path: Path) -> None:
    serial = tmp_path / "log"
    with serial.open("wb") as file:
        file.write(line(OTHER))
        file.truncate(8 << 30)
    follower = Follower(serial)
    started = time.monotonic()
    assert not follower.read()
    assert len(follower._rest) <= 512
    with serial.open("ab") as file:
        file.write((line(OTHER) + b"x") * (2 * WINDOW_BYTES // len(line(OTHER))) + BOOT + line(ED25519))
    assert follower.read()
    assert time.monotonic() - started < 2
    assert follower.keys == {"ssh-ed25519": ED25519}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_keys, "LOOK_EVERY_SECONDS", 0.01)


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_keys_are_recorded_while_the_machine_runs_and_again_after_a_reboot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serial, known_hosts = tmp_path / "log", tmp_path / "known_hosts"
    serial.write_bytes(BOOT)
    with (
        serial.open("ab", buffering=0) as guest,
        host_keys_recorded(serial, known_hosts, NAME, Console(json_lines=True)),
    ):
        assert known_keys(known_hosts, NAME) == []
        guest.write(torn(line(ED25519), 50) + line(ED25519) + line(ED25519))
        until(lambda: known_keys(known_hosts, NAME) == [ED25519])
        guest.write(BOOT + line(ED25519) + line(OTHER) + line(ECDSA))
        until(lambda: known_keys(known_hosts, NAME) == [OTHER, ECDSA])
        known_hosts.unlink()
        guest.write(BOOT + line(OTHER))
        until(lambda: known_keys(known_hosts, NAME) == [OTHER, ECDSA])
        assert [thread.name for thread in threading.enumerate()].count("host-keys") == 1
    assert "host-keys" not in [thread.name for thread in threading.enumerate()]
    events = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "host-keys"
    assert events[0]["address"] == NAME
    assert events[0]["keys"] == {"ssh-ed25519": ED25519.fingerprint}


def test_what_was_told_last_is_recorded_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_keys, "LOOK_EVERY_SECONDS", 60)
    (tmp_path / "log").write_bytes(line(ED25519))
    with host_keys_recorded(tmp_path / "log", tmp_path / "known_hosts", NAME, Console()):
        pass
    assert known_keys(tmp_path / "known_hosts", NAME) == [ED25519]


@pytest.mark.parametrize("broken", ["log", "known_hosts"])
def test_a_reader_that_dies_says_so_once(broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").write_bytes(line(ED25519))
    (tmp_path / broken).unlink(missing_ok=True)
    (tmp_path / broken).mkdir()
    with host_keys_recorded(tmp_path / "log", tmp_path / "known_hosts", NAME, Console()):
        until(lambda: "host-keys" not in [thread.name for thread in threading.enumerate()])
    assert capsys.readouterr().out.count("the host keys of the machine stay unknown") == 1
