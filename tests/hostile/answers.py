"""Families of what comes from the network: HTTP, ssh, and what a command in a machine says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from tests.hostile.mutations import cuts, flips, mixed, yaml_texts
from tests.hostile.trial import WORK, Case, Family
from tests.hostile_server import Hostile, hostile
from tests.ssh_server import ssh_server
from tests.tools import host_key
from tests.unit.test_fetch_hostile import ANSWERS, BODY, WHOLE, got, pinned
from tests.unit.test_kubeconfig import K3S
from tests.upstream import digest
from vmimage.access import login
from vmimage.access.known_hosts import host_name, record
from vmimage.access.kubeconfig import fetch, renamed
from vmimage.access.login import Address, log_in
from vmimage.commands.update.answers import published_digest, published_version
from vmimage.util import download as downloading
from vmimage.util import transfer
from vmimage.util.errors import FetchError
from vmimage.util.location import UnavailableError
from vmimage.vm.ssh import make_key

HEAD = WHOLE[: -len(BODY)]
SLOW = ("byte by byte", "never ends", "endless")
"""Those that wait for a clock are tried in tests/unit/test_fetch_hostile.py."""
HOST_KEY = host_key("ed25519")


def http() -> Family:
    def read(path: Path, folder: Path) -> object:
        downloading.BACKOFF_SECONDS = 0.01
        transfer.POLL_SECONDS = 0.05
        transfer.RATE_SECONDS = 0.6  # type: ignore[attr-defined]
        with hostile(lambda server: [path.read_bytes()]) as server:
            return len(got(pinned(f"{server.url}/tool", most_bytes=1 << 20), folder / WORK))

    known = {name: make(Hostile(0)) for name, make in ANSWERS.items() if not any(word in name for word in SLOW)}
    return Family(
        read=read,
        good=Case(name="good", data=WHOLE),
        cases=(
            *cuts(WHOLE),
            *(Case(name=f"head {case.name}", data=case.text + BODY) for case in flips(HEAD)),
            *[*flips(WHOLE)][1:],
            *mixed(WHOLE),
            *(Case(name=name, data=data) for name, data in known.items() if isinstance(data, bytes)),
        ),
        codes=(4,),
        taken={
            "twice": "what is behind the file is not read",
            "garbage behind it": "what is behind the file is not read",
        },
        either={"head flipped*": "another name of a header, which says nothing to us"},
    )


def _log_in(port: int, folder: Path) -> object:
    login.SECONDS = 1.0
    known = folder / WORK / "known_hosts"
    record(known, host_name("127.0.0.1", port), [HOST_KEY])
    key = make_key(folder / WORK).private
    with log_in(Address(port=port, key=key), known) as client:
        return renamed(fetch(client), "dev-env", "https://127.0.0.1:6443")


def ssh_servers() -> Family:
    """What answers before there is a session: none of it is a machine."""

    def read(path: Path, folder: Path) -> object:
        if path.read_bytes() == b"good":
            with ssh_server(HOST_KEY, answer=K3S.encode()) as port:
                return _log_in(port, folder)
        with hostile(lambda _: [path.read_bytes()]) as server:
            return _log_in(server.port, folder)

    greeting = b"SSH-2.0-OpenSSH_9.9\r\n"
    packet = b"\x00\x00\x00\x2c\x06\x14" + bytes(42)
    texts = {
        "another version": b"SSH-1.5-x\r\n",
        "HTTP": WHOLE,
        "a long line": b"SSH-2.0-" + b"x" * 100_000 + b"\r\n",
        "many lines": b"hello\r\n" * 20_000 + greeting,
        "an escape": b"\x1b[2J\x1b]0;x\x07\r\n" * 10,
        "no UTF-8": b"SSH-2.0-\xff\xfe\r\n" + packet,
        "a packet of 4 GiB": greeting + b"\xff\xff\xff\xff" + bytes(100),
        "a packet of nothing": greeting + bytes(100),
        "padding beyond a packet": greeting + b"\x00\x00\x00\x0c\xff\x14" + bytes(100),
        "lists of 4 GiB": greeting + packet[:22] + b"\xff\xff\xff\xff" + packet[26:],
        "not its turn": greeting + b"\x00\x00\x00\x0c\x0a\x34" + bytes(10),
    }
    return Family(
        read=read,
        good=Case(name="good", data=b"good"),
        cases=(
            *cuts(greeting + packet),
            *(Case(name=name, data=data) for name, data in texts.items()),
        ),
        codes=(2, 3),
    )


def commands() -> Family:
    """What the command says that reads a machine's kubeconfig."""

    def read(path: Path, folder: Path) -> object:
        with contextlib.ExitStack() as open_:
            return _log_in(open_.enter_context(ssh_server(HOST_KEY, answer=path.read_bytes())), folder)

    names = ("deep lists", "names of names of lists", "five MiB", "UTF-16", "a text")
    return Family(
        read=read,
        good=Case(name="good", data=K3S.encode()),
        cases=(
            *[*cuts(K3S.encode())][::3],
            *[*mixed(K3S.encode())][2:],
            *(case for case in yaml_texts(K3S) if case.name in names),
        ),
        codes=(3,),
    )


def _refused(read: Callable[[str], object]) -> Callable[[Path, Path], object]:
    """Return a reader whose refusal is the failure of a pin, as `invoke update` tells it."""

    def tried(path: Path, _: Path) -> object:
        try:
            return read(path.read_bytes().decode("utf-8"))
        except (UnavailableError, UnicodeDecodeError) as error:
            raise FetchError(str(error)) from error

    return tried


def checksums() -> Family:
    """Of a list of checksums, only the one of the file is believed, and only in a list that is whole."""
    lines = "".join(f"{digest(name)}  {name}\n" for name in ("k3s", "k3s-images.txt")).encode()
    return Family(
        read=_refused(lambda text: published_digest(text, "k3s")),
        good=Case(name="good", data=lines),
        cases=(*cuts(lines[: lines.index(b"k3s")]), *flips(lines[: lines.index(b"\n")]), *mixed(lines)),
        codes=(4,),
        taken={"twice": "both say the same"},
    )


def versions() -> Family:
    """Nothing but a version is one."""
    return Family(
        read=_refused(lambda text: published_version(text, None)),
        good=Case(name="good", data=b"v1.37.1\n"),
        cases=(*cuts(b"v1.3"), *flips(b"v1.37.1"), *mixed(b"v1.37.1\n")),
        codes=(4,),
    )


FAMILIES = {
    "HTTP": http,
    "ssh servers": ssh_servers,
    "commands": commands,
    "checksums": checksums,
    "versions": versions,
}
