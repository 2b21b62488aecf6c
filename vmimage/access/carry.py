"""A session with a machine that is begun again after every reboot and sleep, for as long as a command runs."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import paramiko

from vmimage.access.login import Address, log_in
from vmimage.util.console import Console
from vmimage.util.errors import HostError, InputError

KEEPALIVE_SECONDS = 5.0
DEAD_SECONDS = 15.0
RETRY_SECONDS = 2.0
# After a reboot sshd may answer before it lets anybody in.
REFUSED_SECONDS = 60.0


class Carry(Protocol):
    """Works in one session; returns when the session is lost."""

    def __call__(self, *, again: bool) -> None:
        """Log in and work.

        Args:
            again: There was a session before.
        """


def carry_on(carry: Carry, address: Address, console: Console) -> None:
    """Work in session after session, until interrupted.

    Raises:
        VmimageError: The first one could not be begun, or the machine no longer lets us in.
    """
    carry(again=False)
    while True:
        console.event("lost", address=str(address))
        console.say(f"{address} does not answer any more; waiting for it")
        _carry_again(carry)


def _carry_again(carry: Carry) -> None:
    """Try to begin another session until it works; returns when that one is lost too."""
    refused_since: float | None = None
    while True:
        time.sleep(RETRY_SECONDS)
        try:
            carry(again=True)
        except InputError:
            refused_since = refused_since or time.monotonic()
            if time.monotonic() - refused_since > REFUSED_SECONDS:
                raise
        except HostError:
            refused_since = None
        else:
            return


@contextlib.contextmanager
def logged_in(address: Address, known_hosts: Path, console: Console, *, again: bool) -> Iterator[paramiko.Transport]:
    """Log in for the length of a `with` block.

    Raises:
        HostError: The session ended.
        VmimageError: The machine could not be reached, or refused us.
    """
    try:
        with log_in(address, known_hosts, lambda text: None if again else console.warn(text)) as client:
            transport = client.get_transport()
            if transport is None:
                raise EOFError("the session has ended")
            # Answers are small, and each is waited for.
            if isinstance(transport.sock, socket.socket):
                transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield transport
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise HostError(
            f"the session with {address} ended: {error}", hint="see whether the machine runs, then try again"
        ) from error


def wait_until_lost(
    transport: paramiko.Transport, lost: threading.Event, look: Callable[[], object] = lambda: None
) -> None:
    """Wait until the session is lost. Close it if the guest no longer answers: TCP alone would wait for hours.

    Args:
        look: Called every second.
    """
    answered = [time.monotonic()]

    def ask() -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            while not lost.wait(KEEPALIVE_SECONDS) and transport.is_active():
                transport.global_request("keepalive@openssh.com", wait=True)
                answered[0] = time.monotonic()

    threading.Thread(target=ask, name="keepalive", daemon=True).start()
    while not lost.wait(1):
        look()
        if time.monotonic() - answered[0] > DEAD_SECONDS:
            transport.close()
