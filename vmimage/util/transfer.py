"""HTTP downloads that no server can hold up, or let grow without end.

A server may send its handshake, its headers or its body one byte at a time. So each connection is watched from a
thread, which closes it when the download takes too long, is too slow, or is to stop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_auth_from_url
from urllib3.connectionpool import HTTPConnectionPool

from vmimage.util.links import not_followed
from vmimage.util.location import MORE_BYTES, Progress, UnavailableError, require_size
from vmimage.util.settings import RATE_SECONDS, Bounds
from vmimage.util.trust import trusted

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
POLL_SECONDS = 0.25
MOST_REDIRECTS = 10
MOST_REASON = 200
CHUNK = 64 << 10  # a broken connection loses at most this much
SPARE_BYTES = 64 << 20
"""Of the disk, so many stay free."""
LOOK_BYTES = 16 << 20
"""After so many it is looked at again."""


class Watch:
    """Closes the connections to one location when its bounds are reached; `why` then says which."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.why = ""
        self._bytes = 0
        self._ends = time.monotonic() + bounds.seconds
        self._sockets: list[socket.socket] = []
        self._guard = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        with self._guard:
            for each in self._sockets:
                each.close()

    def connected(self, connection: socket.socket) -> None:
        """Watch a connection."""
        with self._guard:
            # Of its own, since TLS takes the descriptor of the other away.
            self._sockets.append(connection.dup())
        if self.why:
            self._close()

    def received(self, count: int) -> None:
        """Count bytes that came."""
        self._bytes += count
        self.check()

    def check(self) -> None:
        """Raise what ended the download, if something did.

        Raises:
            UnavailableError: A bound is reached.
        """
        if self.why:
            raise UnavailableError(self.why)

    def _watch(self) -> None:
        since, before = time.monotonic(), 0
        while not self.why and not self._done.wait(POLL_SECONDS):
            now, bounds = time.monotonic(), self.bounds
            if bounds.stop.is_set():
                self.why = "stopped"
            elif now > self._ends:
                self.why = f"took longer than {bounds.seconds:.0f} s (VMIMAGE_FETCH_SECONDS allows more)"
            elif now - since >= RATE_SECONDS:
                if self._bytes - before < bounds.rate * RATE_SECONDS:
                    self.why = f"sent less than {bounds.rate:.0f} bytes/s for {RATE_SECONDS:.0f} s "
                    self.why += "(VMIMAGE_FETCH_RATE=0 waits all the same)"
                since, before = now, self._bytes
        if self.why:
            self._close()

    def _close(self) -> None:
        with self._guard:
            for each in self._sockets:
                with contextlib.suppress(OSError):  # closed by the other side
                    each.shutdown(socket.SHUT_RDWR)


class _WatchedAdapter(HTTPAdapter):
    """Connections that are watched, and trust what this host trusts."""

    def __init__(self, watch: Watch, context: ssl.SSLContext | None = None) -> None:
        self._watch = watch
        self._context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return super().proxy_manager_for(*args, **kwargs, ssl_context=self._context)

    def cert_verify(self, *args: Any) -> None:
        """Leave certificates to the context; requests would add the authorities of Mozilla."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        assert isinstance(pool, HTTPConnectionPool)  # noqa: S101 - urllib3 has no other
        watch = self._watch

        class Watched(pool.ConnectionCls):  # type: ignore[name-defined,misc]  # plain or TLS, as the pool has it
            def _new_conn(self) -> socket.socket:
                connection: socket.socket = super()._new_conn()
                watch.connected(connection)
                return connection

        pool.ConnectionCls = Watched
        return pool


class _Session(requests.Session):
    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Lead nowhere: even when it is not to follow, requests would read the whole body of a redirect into memory."""
        return iter(())


def attempt(url: str, to: Path, watch: Watch, progress: Progress) -> str:
    """Get the rest of a file; returns why another attempt is worth it, or nothing when it is complete.

    Raises:
        UnavailableError: Another attempt cannot help.
        requests.exceptions.RequestException, urllib3.exceptions.HTTPError: The connection broke.
    """
    if watch.bounds.believed:
        to.unlink(missing_ok=True)  # two halves may be of two answers
    have = to.stat().st_size if to.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with _answer(url, headers, watch) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            # Complete already, or other bytes than before: the digest tells, or the next attempt starts anew.
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return ""
            to.unlink(missing_ok=True)
            return "the server's answers contradict each other"
        if answer.status_code in (requests.codes.too_many_requests, *range(500, 600)):
            return f"HTTP {answer.status_code}"
        if answer.status_code not in (requests.codes.ok, requests.codes.partial_content):
            raise UnavailableError(f"HTTP {answer.status_code} {answer.reason[:MOST_REASON]}")
        if watch.bounds.believed:
            _require_whole(answer)
        resumed = answer.status_code == requests.codes.partial_content
        with open(to, "ab" if resumed else "wb", opener=not_followed) as file:
            _copy(answer, file, to, watch, progress)
    return ""


@contextlib.contextmanager
def _answer(url: str, headers: dict[str, str], watch: Watch) -> Iterator[requests.Response]:
    """Ask for a URL, and follow where the answers lead; their bodies are not read, as requests would do it."""
    auth = None
    with _Session() as session:
        session.mount("http://", _WatchedAdapter(watch))
        for _ in range(MOST_REDIRECTS):
            if url.lower().startswith("https:"):
                session.mount("https://", _WatchedAdapter(watch, trusted()))
            auth = _credentials(url) or auth
            timeout = (CONNECT_SECONDS, READ_SECONDS)
            with session.get(
                url, headers=headers, auth=auth, stream=True, allow_redirects=False, timeout=timeout
            ) as answer:
                target = session.get_redirect_target(answer)
                if target is None:
                    yield answer
                    return
                following = urljoin(url, target)
                if watch.bounds.believed:
                    _require_as_safe(url, following)
                if _origin(following) != _origin(url):
                    auth = None
                url = following
    raise UnavailableError(f"led on to another address more than {MOST_REDIRECTS} times")


def _require_as_safe(url: str, following: str) -> None:
    """Refuse a redirect to where others than those who were asked could answer: it has to end at https, or stay."""
    if not following.lower().startswith("https:") and _origin(following) != _origin(url):
        parts = urlsplit(following)
        where = f"{parts.scheme}://{parts.netloc}"[:MOST_REASON]
        raise UnavailableError(f"leads on to {where}, which is refused: only https proves who answers")


def _require_whole(answer: requests.Response) -> None:
    """Refuse an answer that is only a part, or does not say where it ends: nobody would see that it was cut off."""
    ends = "Content-Length" in answer.headers or getattr(answer.raw, "chunked", False)
    if answer.status_code != requests.codes.ok or not ends:
        raise UnavailableError("the answer does not say where it ends, or is only a part")


def _credentials(url: str) -> tuple[str, str] | None:
    found = get_auth_from_url(url)
    return found if any(found) else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _copy(answer: requests.Response, file: IO[bytes], to: Path, watch: Watch, progress: Progress) -> None:
    """Write the body of an answer to a file.

    Raises:
        UnavailableError: It is larger than it may be; what came of it is removed.
        OSError: The disk is full.
    """
    length = answer.headers.get("Content-Length", "")
    total = file.tell() + int(length) if length.isascii() and length.isdigit() else None
    most, done = watch.bounds.most_bytes, file.tell()
    looked = 0
    # As it comes: a byte is worth a look at the clock, and nothing is unpacked on the way.
    while done <= most and (total is None or total <= most) and (chunk := answer.raw.read1(CHUNK)):
        file.write(chunk)
        done += len(chunk)
        watch.received(len(chunk))
        progress(done, total)
        if done - looked > LOOK_BYTES:
            looked = done
            if shutil.disk_usage(to.parent).free < SPARE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    watch.check()
    try:
        require_size(max(done, total or 0), most, way_out="" if watch.bounds.believed else MORE_BYTES)
    except UnavailableError:
        to.unlink(missing_ok=True)
        raise


def plain_words(error: Exception, url: str) -> str:
    """Return why a connection broke, in words for people."""
    host = urlsplit(url).hostname
    causes = list(_causes(error))
    text = str(causes[-1])
    words = {
        "Name or service not known": f"cannot resolve the name {host}",
        "NameResolutionError": f"cannot resolve the name {host}",
        "timed out": f"{host} did not answer within {CONNECT_SECONDS:.0f} s",
        "refused": f"{host} refused the connection",
    }
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {host} is refused: {cause.verify_message}. If an authority of your company signed "
                "it, add that to this host (update-ca-certificates), or name its file in SSL_CERT_FILE or "
                "REQUESTS_CA_BUNDLE"
            )
    whole = str(error)
    proxy = "the proxy: " if "ProxyError" in whole else ""
    return proxy + (text if proxy else next((told for mark, told in words.items() if mark in whole), text))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what is behind it, each inside another in the ways of requests and urllib3."""
    seen = list[BaseException]()
    following: object = error
    while isinstance(following, BaseException) and following not in seen:
        seen.append(following)
        yield following
        inner = getattr(following, "reason", None)
        first = following.args[0] if following.args else None
        following = next(
            (each for each in (inner, first, following.__cause__) if isinstance(each, BaseException)), None
        )
