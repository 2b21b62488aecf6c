"""Waiting for a guest's sshd, against servers on this host's loopback."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ssh_server import ssh_server
from tests.tools import host_key
from vmimage.util.errors import VerifyError
from vmimage.vm import ssh
from vmimage.vm.ssh import answered_port, dial, make_key, wait_for_ssh

BANNER = b"SSH-2.0-test\r\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "DIAL_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(ssh, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(ssh, "RETRY_SECONDS", 0.05)


@pytest.fixture
def guest() -> Iterator[socket.socket]:
    """A listening socket; what is sent to those that it accepts is the test's business."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def greet_second(server: socket.socket) -> None:
    """Be a guest that comes up between two connections: the first is never answered, the second echoes a line."""
    with server.accept()[0], server.accept()[0] as second:
        second.settimeout(10)
        second.sendall(BANNER)
        second.sendall(second.recv(100).upper())
        assert second.recv(1) == b""


def test_a_connection_that_nobody_answers_does_not_hold_up_the_next(guest: socket.socket) -> None:
    thread = threading.Thread(target=greet_second, args=(guest,))
    thread.start()
    with dial(port_of(guest), wanted=lambda: True) as connection:
        assert connection.gettimeout() is None
        assert connection.recv(100) == BANNER
        connection.sendall(b"x")
        assert connection.recv(100) == b"X"
    thread.join(10)
    assert not thread.is_alive()


def test_dialling_ends_when_it_is_not_wanted_any_more(guest: socket.socket) -> None:
    asked: list[float] = []

    def wanted() -> bool:
        asked.append(time.monotonic())
        return len(asked) < 3

    with pytest.raises(TimeoutError):
        dial(port_of(guest), wanted=wanted)


def test_a_program_that_connects_at_once_waits_for_the_answer_and_both_directions_are_joined(
    guest: socket.socket,
) -> None:
    thread = threading.Thread(target=greet_second, args=(guest,))
    thread.start()
    with answered_port(port_of(guest)) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"hello")
        received = b""
        while len(received) < len(BANNER) + 5:
            received += client.recv(100)
        assert received == BANNER + b"HELLO"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    thread.join(10)
    assert not thread.is_alive()


def test_a_program_that_hangs_up_is_not_dialled_for_any_longer(guest: socket.socket) -> None:
    with answered_port(port_of(guest)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            for _ in range(3):
                guest.accept()[0].close()
        guest.settimeout(0.4)
        dialled = 0
        with contextlib.suppress(TimeoutError):
            while dialled < 20:
                guest.accept()[0].close()
                dialled += 1
        assert dialled < 20


def test_waiting_for_a_machine_that_stopped_says_so(guest: socket.socket, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    with pytest.raises(VerifyError, match="stopped before"):
        wait_for_ssh(port_of(guest), "dev", key.private, timeout=60, alive=lambda: False)
    with pytest.raises(VerifyError, match=r"within 0 s \(last: nothing answered\)"):
        wait_for_ssh(port_of(guest), "dev", key.private, timeout=0, alive=lambda: True)


def test_machine_that_gets_further_is_waited_for_but_not_for_ever(guest: socket.socket, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    started = time.monotonic()
    with pytest.raises(VerifyError, match=r"within [012] s"):
        wait_for_ssh(port_of(guest), "dev", key.private, timeout=0.1, alive=lambda: True, progress=time.monotonic)
    assert time.monotonic() - started > 0.35


def test_guest_whose_commands_do_not_end_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "ATTEMPT_SECONDS", 0.3)
    key = make_key(tmp_path).private
    with (
        ssh_server(host_key("ed25519"), status=None) as port,
        pytest.raises(VerifyError, match=r"did not answer ssh within .* a command in the machine did not end"),
    ):
        wait_for_ssh(port, "dev", key, timeout=0.5, alive=lambda: True)
