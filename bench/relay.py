"""This host's Debian mirrors, for a guest in QEMU's user network."""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

from vmimage.util.errors import InputError

GUESTS_HOST = "10.0.2.2"
"""This host's loopback, as QEMU's user network shows it to a guest."""
RELAY_SECONDS = 60.0


def sources_through(lines: Sequence[str], port: int) -> tuple[list[str], list[str]]:
    """Return the URLs behind sources.list lines, and the lines that reach them through a relay; pure.

    Raises:
        InputError: A line is no `deb` line of a web server.
    """
    urls: list[str] = []
    through: list[str] = []
    for line in lines:
        match = re.match(r"deb\s+(\[[^\]]*\]\s+)?(https?://\S+?)/*\s+(.+)", line)
        if not match:
            raise InputError(f"a guest cannot reach the mirror {line!r}", hint="name one with --deb-mirror http://…")
        through.append(f"deb {match[1] or ''}http://{GUESTS_HOST}:{port}/{len(urls)} {match[3]}")
        urls.append(match[2])
    return urls, through


@contextlib.contextmanager
def relay(lines: Sequence[str]) -> Iterator[list[str]]:
    """Serve this host's Debian mirrors on its loopback for the length of a `with` block; yields sources.list lines.

    A guest sees neither this host's /etc/hosts nor its proxies and certificates; through the relay both builds take
    the same bytes from the same place.
    """
    urls: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            number, _, path = self.path.lstrip("/").partition("/")
            if not number.isdigit() or int(number) >= len(urls):
                self.send_error(404)
                return
            headers = {"Accept-Encoding": "identity"}
            try:
                answer = requests.get(
                    f"{urls[int(number)]}/{path}", headers=headers, stream=True, timeout=RELAY_SECONDS
                )
            except requests.exceptions.RequestException as error:
                self.send_error(502, type(error).__name__)
                return
            with answer:
                self.send_response(answer.status_code)
                length = answer.headers.get("Content-Length")
                self.send_header(*(("Content-Length", length) if length else ("Connection", "close")))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):
                    shutil.copyfileobj(answer.raw, self.wfile, 1 << 16)

        def log_message(self, *_: object) -> None:
            """Say nothing on our standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found, through = sources_through(lines, server.server_port)
        urls += found
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield through
        finally:
            server.shutdown()
