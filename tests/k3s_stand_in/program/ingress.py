"""What stands for Traefik: it says where a request would have been led to, and leads it nowhere."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.k3s_stand_in.program.objects import Objects


def serve(objects: Objects, address: str, port: int) -> None:
    """Answer from now on, by http only."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
            """Keep the journal short."""

        def do_GET(self) -> None:
            """Name the service of the Ingress for this host."""
            service = backend(objects, self.headers.get("Host", "").split(":")[0])
            text = f"the stand-in would ask the service {service}\n" if service else "404 page not found\n"
            self.send_response(200 if service else 404)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    threading.Thread(target=ThreadingHTTPServer((address, port), Handler).serve_forever, daemon=True).start()


def backend(objects: Objects, host: str) -> str:
    """Return NAMESPACE/NAME of the service behind a host, or nothing."""
    for ingress in objects.find("ingresses"):
        for rule in ingress["spec"].get("rules") or []:
            if rule.get("host") == host:
                service = rule["http"]["paths"][0]["backend"]["service"]["name"]
                return f"{ingress['metadata']['namespace']}/{service}"
    return ""
