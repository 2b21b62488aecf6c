"""What stands for Traefik: it asks the service of the Ingress that a request is for, by http only."""

from __future__ import annotations

import http.client
import random
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from tests.k3s_stand_in.program.network import End, connected
from tests.k3s_stand_in.program.objects import Object, Objects, Refused
from tests.k3s_stand_in.program.services import Backend, backends

SECONDS = 30.0
NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "content-length"}
"""Headers of one connection, and the length, which is that of what was read."""


class Server(ThreadingTCPServer):
    """Answers in threads of its own, from its start until it is closed."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, objects: Objects, end: End) -> None:
        self.objects = objects
        super().__init__(end, Handler)

    def start(self) -> None:
        """Begin to answer; threads are in the network that this one is in now, wherever the socket is."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
        """Keep the journal short."""

    def do_any(self) -> None:
        """Lead a request to a pod."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = led_to(self.server.objects, self.headers.get("Host", "").split(":")[0], self.path)
        if not found:
            return self.say(404, "404 page not found\n")
        name, ends = found
        if not ends:
            return self.say(503, "no available server\n")
        chosen = random.choice(ends)  # noqa: S311 - any will do
        if chosen.simulated:
            return self.say(200, f"the stand-in would ask the service {name}\n")
        try:
            return self.ask(chosen, body)
        except (OSError, http.client.HTTPException):
            return self.say(502, "Bad Gateway")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_any  # noqa: N815

    def ask(self, backend: Backend, body: bytes) -> None:
        """Ask a pod, and pass its answer on."""
        connection = http.client.HTTPConnection(backend.address, backend.port)
        connection.sock = connected((backend.address, backend.port), SECONDS)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in NOT_PASSED_ON:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in NOT_PASSED_ON]
        self.say(answer.status, data, headers)

    def say(self, code: int, text: str | bytes, headers: list[tuple[str, str]] | None = None) -> None:
        """Answer."""
        data = text.encode() if isinstance(text, str) else text
        self.send_response_only(code)
        for name, value in headers or [("Content-Type", "text/plain; charset=utf-8")]:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def led_to(objects: Objects, host: str, path: str) -> tuple[str, list[Backend]] | None:
    """Return NAMESPACE/NAME of the service behind a host and a path, and its ready pods; None when there is none."""
    longest: tuple[int, str, Object] | None = None
    for ingress in objects.find("ingresses"):
        for rule in ingress["spec"].get("rules") or []:
            for each in rule.get("http", {}).get("paths", []) if rule.get("host") == host else []:
                prefix = each.get("path") or "/"
                if path.startswith(prefix) and (not longest or len(prefix) > longest[0]):
                    longest = (len(prefix), ingress["metadata"]["namespace"], each["backend"]["service"])
    if not longest:
        return None
    _, namespace, wanted = longest
    try:
        service = objects.get(("services", namespace, wanted["name"]))
    except Refused:
        return None
    chosen = wanted.get("port") or {}
    ports = [
        port
        for port in service["spec"].get("ports") or []
        if chosen.get("name") == port.get("name", "") or chosen.get("number") == port["port"]
    ]
    return f"{namespace}/{wanted['name']}", [end for port in ports[:1] for end in backends(objects, service, port)]
