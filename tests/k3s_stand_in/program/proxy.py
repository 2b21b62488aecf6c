"""The part of kube-proxy and of servicelb: services' addresses and ports lead to ready pods, for TCP."""

from __future__ import annotations

import random
import socket
import socketserver
import sys
import threading
from contextlib import suppress

from tests.k3s_stand_in.program.network import DNS, End, connected
from tests.k3s_stand_in.program.objects import Object, Objects
from tests.k3s_stand_in.program.services import backends

SECONDS = 5.0
LOCAL = "127.0.0.1"


class Listener(socketserver.ThreadingTCPServer):
    """One address and port of a service."""

    allow_reuse_address = True
    # A service at an address of its own may have the port that another has at all addresses.
    allow_reuse_port = True
    daemon_threads = True

    def __init__(self, end: End) -> None:
        super().__init__(end, Forward)
        self.ends: list[End] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening; what is connected stays so."""
        self.shutdown()
        self.server_close()


class Forward(socketserver.BaseRequestHandler):
    """One connection."""

    server: Listener
    request: socket.socket

    def handle(self) -> None:
        """Connect to a pod, and pass on what comes from either side until both have ended."""
        chosen = random.choice(self.server.ends)  # noqa: S311 - any will do
        try:
            # The cluster's own API is no pod.
            pod = socket.create_connection(chosen, SECONDS) if chosen[0] == LOCAL else connected(chosen, SECONDS)
        except OSError:
            return
        pod.settimeout(None)
        with pod:
            back = threading.Thread(target=pump, args=(pod, self.request), daemon=True)
            back.start()
            pump(self.request, pod)
            back.join()


def pump(source: socket.socket, to: socket.socket) -> None:
    """Pass on what one side sends, and that it has ended."""
    try:
        while data := source.recv(65536):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone: let the thread of the other direction notice.
        for each in (source, to):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Proxy:
    """All services."""

    def __init__(self, objects: Objects, api_port: int) -> None:
        self._objects = objects
        self._api = (LOCAL, api_port)
        self._listeners: dict[End, Listener] = {}
        self._told: set[End] = set()

    def sync(self) -> None:
        """Listen where a service has ready pods, and nowhere else: there, connections are refused."""
        wanted = {end: ends for service in self._objects.find("services") for end, ends in self._of(service)}
        for end in [end for end in self._listeners if end not in wanted]:
            self._listeners.pop(end).close()
        for end, ends in wanted.items():
            if end not in self._listeners:
                try:
                    self._listeners[end] = Listener(end)
                except OSError as error:
                    if end not in self._told:
                        print(f"{end[0]}:{end[1]}: {error}", file=sys.stderr, flush=True)
                    self._told.add(end)
                    continue
            self._listeners[end].ends = ends

    def _of(self, service: Object) -> list[tuple[End, list[End]]]:
        spec, meta = service["spec"], service["metadata"]
        found = []
        for port in spec.get("ports") or []:
            if port.get("protocol", "TCP") != "TCP":
                continue
            ends = [(each.address, each.port) for each in backends(self._objects, service, port)]
            if (meta["namespace"], meta["name"]) == ("default", "kubernetes"):
                ends = [self._api]
            address = spec.get("clusterIP", "None")
            # Of DNS the pod itself has the address.
            places = [(address, port["port"])] if address not in ("None", DNS) else []
            if port.get("nodePort"):
                places.append(("0.0.0.0", port["nodePort"]))  # noqa: S104 - as the real one
            if spec["type"] == "LoadBalancer":
                places.append(("0.0.0.0", port["port"]))  # noqa: S104 - as the real one
            found += [(place, ends) for place in places if ends]
        return found
