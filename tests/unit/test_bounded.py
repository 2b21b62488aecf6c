"""Machines that answer ssh with anything, and without end."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from tests.ssh_server import ssh_server
from tests.tools import host_key
from vmimage.access import login
from vmimage.access.login import Address, log_in
from vmimage.access.share import _owner, prepare
from vmimage.access.sshfs import Session, Share
from vmimage.util.errors import HostError
from vmimage.vm import bounded
from vmimage.vm.limits import ANSWER_BYTES, BANNER_BYTES, UNREAD_BYTES
from vmimage.vm.ssh import make_key

HOST_KEY = host_key("ed25519")


def flood(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 4096)


def drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def lines(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"hello\r\n" * 100)


def packet(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-x\r\n" + struct.pack(">I", 0x7FFFFFF4) + b"x" * 100)
    flood(connection)


@contextlib.contextmanager
def answering(how: Callable[[socket.socket], None]) -> Iterator[int]:
    """Answer connections in some way; yields the port."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    how(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (flood, "no machine answers ssh at .*greets without end"),
        (drip, "no machine answers ssh at"),
        (lines, "no machine answers ssh at .*(greets without end|Indecipherable)"),
        (lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "no machine answers ssh at"),
        (lambda connection: None, "no machine answers ssh at"),
        (packet, "answers, but not as an ssh server of a machine does: it sends a packet of 2147"),
        (lambda connection: connection.sendall(b"SSH-2.0-x\r\n"), "answers, but not as an ssh server"),
        (lambda connection: connection.sendall(b"SSH-2.0-x\r\n" + b"\0" * 64), "answers, but not as an ssh server"),
    ],
    ids=["flood", "drip", "lines", "http", "nothing", "packet", "end", "zeros"],
)
@pytest.mark.parametrize("given", [None, HOST_KEY.fingerprint], ids=["unknown", "given"])
def test_greetings_have_an_end_and_who_answers_is_told(
    how: Callable[[socket.socket], None], why: str, given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "SECONDS", 0.5)
    key = make_key(tmp_path).private
    started = time.monotonic()
    with answering(how) as port, pytest.raises(HostError, match=why):  # noqa: SIM117
        with log_in(Address(port=port, key=key, host_key=given), tmp_path / "known_hosts"):
            pass
    assert time.monotonic() - started < 5
    assert BANNER_BYTES < 1 << 20


@contextlib.contextmanager
def session(folder: Path, **server: object) -> Iterator[paramiko.Transport]:
    """Log in to a machine; yields the session."""
    with ssh_server(HOST_KEY, **server) as port:  # type: ignore[arg-type]
        address = Address(port=port, key=make_key(folder).private, host_key=HOST_KEY.fingerprint)
        with log_in(address, folder / "known_hosts") as client:
            transport = client.get_transport()
            assert transport
            yield transport


def test_what_nobody_reads_is_bounded(tmp_path: Path) -> None:
    with session(tmp_path) as transport:
        channel = bounded.start(transport, "true")
        channel.in_buffer.feed(b"x" * UNREAD_BYTES)
        with pytest.raises(paramiko.SSHException, match="more than it may"):
            channel.in_buffer.feed(b"x")
        assert isinstance(channel.in_stderr_buffer, type(channel.in_buffer))


def test_answer_is_bounded_in_bytes_and_time(tmp_path: Path) -> None:
    with session(tmp_path, answer=b"x" * (ANSWER_BYTES + 1)) as transport, pytest.raises(HostError, match="64 KiB"):
        login.read_answer(bounded.start(transport, "yes"), seconds=10)


def test_command_that_does_not_end(tmp_path: Path) -> None:
    with session(tmp_path, status=None) as transport, pytest.raises(TimeoutError):
        login.read_answer(bounded.start(transport, "sleep 9"), seconds=0.2)


@pytest.mark.parametrize("reads", [True, False], ids=["slowly", "never"])
def test_machine_that_reads_nothing_is_not_sent_to_for_ever(reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may ask for answers faster than it takes them; who sends holds the lock of all others."""
    monkeypatch.setattr(bounded, "UNSENT_SECONDS", 0.4)
    ours, theirs = socket.socketpair()
    ours.settimeout(0.05)
    packets, stop = bounded._Packets(ours), threading.Event()

    def read() -> None:
        while not stop.wait(0.05):
            theirs.recv(400_000)

    thread = threading.Thread(target=read)
    with ours, theirs:
        if not reads:
            with pytest.raises(EOFError):
                packets.write_all(bytes(4 << 20))
            return
        thread.start()
        started = time.monotonic()
        packets.write_all(bytes(4 << 20))
        stop.set()
        thread.join()
        assert time.monotonic() - started > 0.5, "it was sent without a wait"


def test_command_that_does_not_begin(tmp_path: Path) -> None:
    with session(tmp_path) as transport:
        started = time.monotonic()
        with pytest.raises(paramiko.SSHException, match="Channel closed"):
            bounded.start(transport, "take your time", seconds=0.2)
        assert time.monotonic() - started < 0.8


def prepared(folder: Path, **server: object) -> tuple[int, int]:
    with session(folder, **server) as transport:
        share = Share(source=folder, target="/home/dev/x")
        return prepare(Session(share=share, transport=transport), again=False)


def test_errors_of_the_preparation_mean_nothing_by_themselves(tmp_path: Path) -> None:
    errors = b"sudo: unable to resolve host dev-env: Name or service not known\n"
    assert prepared(tmp_path, answer=b"1000\n1001\n", errors=errors) == (1000, 1001)


def test_errors_of_a_preparation_that_failed_are_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"could not be made in the guest\n    mkdir: no"):
        prepared(tmp_path, status=1, errors=b"mkdir: no\n")


@pytest.mark.parametrize(
    "said", ["", "-1\n0\n", "1000\n", "0\n4294967295\n", "9" * 30 + "\n1", "a b", "1 2 3", "\u0661 1"]
)
def test_owner_that_is_none(said: str) -> None:
    with pytest.raises(HostError, match="does not tell its user's number"):
        _owner(said)
