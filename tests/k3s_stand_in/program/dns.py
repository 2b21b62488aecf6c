"""What stands for CoreDNS: it knows the names of services, and forwards nothing."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from contextlib import suppress
from ipaddress import IPv4Address

from tests.k3s_stand_in.program.objects import Objects, Refused
from tests.k3s_stand_in.program.services import is_ready, pods_of

ZONE = ("cluster", "local")
A, IN = 1, 1
NO_ERROR, FORMAT_ERROR, NO_NAME, REFUSED = 0, 1, 3, 5
TTL = 5


class Server:
    """Answers at UDP sockets, in a thread of its own, until it is closed."""

    def __init__(self, objects: Objects, sockets: list[socket.socket]) -> None:
        self._objects = objects
        self._sockets = sockets
        self._closed = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        """Stop, within a second."""
        self._closed.set()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in self._sockets:
                selector.register(each, selectors.EVENT_READ)
            while not self._closed.is_set():
                for key, _ in selector.select(1.0):
                    assert isinstance(key.fileobj, socket.socket)
                    query, asker = key.fileobj.recvfrom(512)
                    reply = answer(self._objects, query)
                    if reply:
                        with suppress(OSError):  # there may be no way back to who asked
                            key.fileobj.sendto(reply, asker)
        for each in self._sockets:
            each.close()


def listening(*ends: tuple[str, int]) -> list[socket.socket]:
    """Return UDP sockets, one for each address: so that answers come from where the question went."""
    sockets = []
    for end in ends:
        each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        each.bind(end)
        sockets.append(each)
    return sockets


def answer(objects: Objects, query: bytes) -> bytes:
    """Return the answer to a question of one name (RFC 1035), or nothing to what is no question."""
    if len(query) < 12 or query[2] & 0x80:
        return b""
    number, flags, count = struct.unpack_from("!HHH", query)
    labels, at = [], 12
    try:
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii").lower())
            at += 1 + query[at]
        kind, kind_of_net = struct.unpack_from("!HH", query, at + 1)
    except (IndexError, UnicodeDecodeError, struct.error):
        count = 0
    if count != 1:
        return struct.pack("!HHHHHH", number, 0x8000 | FORMAT_ERROR, 0, 0, 0, 0)
    question = query[12 : at + 5]
    addresses: list[str] = []
    if tuple(labels[-2:]) != ZONE or kind_of_net != IN:
        code = REFUSED
    else:
        found = addresses_of(objects, labels)
        code = NO_NAME if found is None else NO_ERROR
        addresses = found if found and kind == A else []
    # An answer, authoritative, and whether recursion was asked for is repeated.
    header = struct.pack("!HHHHHH", number, 0x8400 | flags & 0x0100 | code, 1, len(addresses), 0, 0)
    records = [struct.pack("!HHHIH", 0xC00C, A, IN, TTL, 4) + IPv4Address(each).packed for each in addresses]
    return header + question + b"".join(records)


def addresses_of(objects: Objects, labels: list[str]) -> list[str] | None:
    """Return the addresses of SERVICE.NAMESPACE.svc.cluster.local, or None when there is no such name."""
    if len(labels) != 5 or labels[2] != "svc":
        return None
    try:
        service = objects.get(("services", labels[1], labels[0]))
    except Refused:
        return None
    address = service["spec"].get("clusterIP")
    if address and address != "None":
        return [address]
    return [pod["status"]["podIP"] for pod in pods_of(objects, service) if is_ready(pod)]
