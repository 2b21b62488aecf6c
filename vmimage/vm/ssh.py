"""Keys made for one purpose, and waiting until a guest answers ssh.

QEMU's user network accepts a connection to a guest that does not listen yet, and tries to deliver it at growing
intervals: who waits for its answer may wait ten seconds longer than the guest takes. So one is dialled anew every now
and then, and the first that is answered is taken.
"""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from vmimage.util.errors import VerifyError
from vmimage.vm import bounded

ATTEMPT_SECONDS = 15.0
DIAL_EVERY_SECONDS = 2.0
LOOK_EVERY_SECONDS = 0.2
RETRY_SECONDS = 0.5
PATIENCE = 4


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """An ed25519 key: the private half in a file that only we can read, the public half as OpenSSH's text."""

    private: Path
    public: str


def make_key(folder: Path) -> KeyPair:
    """Make an ed25519 key (Packer 1.6.6 speaks no rsa-sha2, and today's sshd no ssh-rsa)."""
    key = Ed25519PrivateKey.generate()
    private = folder / "id_ed25519"
    private.touch(mode=0o600)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return KeyPair(private=private, public=public)


@contextlib.contextmanager
def connect(
    port: int, user: str, key: Path, *, connection: socket.socket | None = None
) -> Iterator[paramiko.SSHClient]:
    """Log in to a guest on this host's loopback.

    The host key is not checked: it was made a moment ago inside the guest, and the way there is our own QEMU.

    Args:
        connection: One that is open already.

    Raises:
        OSError, paramiko.SSHException: It does not answer.
    """
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())  # noqa: S507 - see above
    with contextlib.closing(client):
        client.connect(
            "127.0.0.1",
            port,
            user,
            key_filename=str(key),
            timeout=ATTEMPT_SECONDS,
            banner_timeout=ATTEMPT_SECONDS,
            auth_timeout=ATTEMPT_SECONDS,
            allow_agent=False,
            look_for_keys=False,
            sock=connection,
            transport_factory=bounded.transport,
        )
        yield client


def dial(port: int, *, wanted: Callable[[], bool]) -> socket.socket:
    """Connect to a port on this host's loopback that leads into a guest; the connection's first bytes are there.

    Args:
        wanted: Tells whether to go on trying.

    Raises:
        TimeoutError: It is not wanted any more.
    """
    waiting: dict[socket.socket, float] = {}
    due = time.monotonic()
    try:
        while wanted():
            now = time.monotonic()
            if now >= due:
                due = now + DIAL_EVERY_SECONDS
                with contextlib.suppress(OSError):
                    waiting[socket.create_connection(("127.0.0.1", port), timeout=ATTEMPT_SECONDS)] = now
            ready = select.select(list(waiting), [], [], LOOK_EVERY_SECONDS)[0]
            for connection in [*ready, *(old for old, since in waiting.items() if now - since > ATTEMPT_SECONDS)]:
                with contextlib.suppress(OSError):
                    if connection in ready and connection.recv(1, socket.MSG_PEEK):
                        del waiting[connection]
                        # A busy guest may take its time to read.
                        connection.settimeout(None)
                        return connection
                waiting.pop(connection, None)
                connection.close()
    finally:
        for connection in waiting:
            connection.close()
    raise TimeoutError("nothing answered")


@contextlib.contextmanager
def answered_port(port: int) -> Iterator[int]:
    """Serve a port that leads to another one, into a guest; who connects waits exactly until that is answered.

    For programs that wait for ssh in their own way (Packer).
    """
    over = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            client: socket.socket = self.request
            with contextlib.suppress(OSError), dial(port, wanted=lambda: not over.is_set() and _open(client)) as guest:
                _join(client, guest)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            over.set()
            server.shutdown()


def _open(client: socket.socket) -> bool:
    """Tell whether the other side has not hung up."""
    return not select.select([client], [], [], 0)[0] or client.recv(1, socket.MSG_PEEK) != b""


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass on what each of two connections receives to the other, until both have ended."""
    onward = {one: other, other: one}
    while onward:
        for end in select.select(list(onward), [], [])[0]:
            data = end.recv(1 << 16)
            if data:
                onward[end].sendall(data)
            else:
                onward.pop(end).shutdown(socket.SHUT_WR)


def _answers(client: paramiko.SSHClient) -> bool:
    """Run a command.

    Raises:
        TimeoutError: The guest takes it, and never says that it has ended.
    """
    session = client.get_transport()
    if session is None:
        return False
    channel = bounded.start(session, "true", seconds=ATTEMPT_SECONDS)
    return bounded.exit_status(channel, ATTEMPT_SECONDS) == 0


def wait_for_ssh(
    port: int,
    user: str,
    key: Path,
    *,
    timeout: float,
    alive: Callable[[], bool],
    progress: Callable[[], object] = lambda: None,
) -> float:
    """Wait until a user can log in; returns the seconds it took.

    Args:
        timeout: Seconds without progress, and PATIENCE times as many at most: an emulated machine beside others may
            be slow, and one that starts again and again makes progress too.
        alive: Tells whether the machine still runs; waiting ends when it does not.
        progress: Returns another value whenever the machine got further.

    Raises:
        VerifyError: It did not answer in time.
    """
    started = moved = time.monotonic()
    why, reached = "nothing answered", progress()

    def still_waiting() -> bool:
        nonlocal moved, reached
        now, reaches = time.monotonic(), progress()
        if reaches != reached:
            moved, reached = now, reaches
        return alive() and now - moved < timeout and now - started < PATIENCE * timeout

    while still_waiting():
        try:
            with (
                dial(port, wanted=still_waiting) as connection,
                connect(port, user, key, connection=connection) as client,
            ):
                if _answers(client):
                    return time.monotonic() - started
        except (TimeoutError, OSError, EOFError, paramiko.SSHException) as error:
            why = str(error) or type(error).__name__
        time.sleep(RETRY_SECONDS)
    if not alive():
        raise VerifyError("the machine stopped before it answered ssh")
    seconds = time.monotonic() - started
    raise VerifyError(f"the machine did not answer ssh within {seconds:.0f} s (last: {why})")
