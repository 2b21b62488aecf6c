"""Servers and archives that are slow, endless or nonsense: each is the failure of one location, and of nothing else."""

from __future__ import annotations

import bz2
import datetime
import gzip
import hashlib
import io
import lzma
import os
import signal
import ssl
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.hostile_server import Hostile, hostile
from vmimage.cache.store import Store
from vmimage.plan import PinnedFile, Source
from vmimage.stages import fetch as fetching
from vmimage.stages.fetch import fetch, reason_of
from vmimage.util import download as downloading
from vmimage.util import transfer, unpack
from vmimage.util.console import Step
from vmimage.util.download import download
from vmimage.util.errors import FetchError, HostError, InputError
from vmimage.util.location import UnavailableError
from vmimage.util.settings import Bounds, fetch_bounds
from vmimage.util.unpack import extract_member

BODY = b"the file" * 1000
EMPTY = b"Content-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(transfer, "POLL_SECONDS", 0.05)
    for name in ("http_proxy", "https_proxy", "all_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


LONG = 30.0
RATE_SECONDS = {True: 0.15, False: LONG}
"""That are waited for a server that is slow, or for another: on a busy host, any may be slow for a moment."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RATE_SECONDS", RATE_SECONDS[True])


def pinned(*urls: str, most_bytes: int | None = None, members: tuple[str, ...] = ()) -> PinnedFile:
    sources = tuple(Source(kind="url", where=url, members=members) for url in urls)
    digest = hashlib.sha256(BODY).hexdigest()
    return PinnedFile(name="tool", version="v1", arch="amd64", sha256=digest, sources=sources, most_bytes=most_bytes)


def got(file: PinnedFile, tmp_path: Path) -> bytes:
    return fetch([file], Store(tmp_path / "cache"), Step(lambda event, text: None, None, None))["tool"].read_bytes()


ANSWERS: dict[str, Callable[[Hostile], bytes | Callable[..., None]]] = {
    "no HTTP": lambda _: b"\x00\xff garbage\r\n\r\n",
    "nothing": lambda _: b"",
    "status is no number": lambda _: b"HTTP/1.1 abc OK\r\n\r\n",
    "too many headers": lambda _: OK + b"X: y\r\n" * 300 + b"\r\n",
    "a header of 100 KB": lambda _: OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
    "Location without a host": lambda _: b"HTTP/1.1 302 Found\r\nLocation: http://a..b/\r\n" + EMPTY,
    "Location that is no URL": lambda _: b"HTTP/1.1 302 Found\r\nLocation: http://\x1b[31m/\r\n" + EMPTY,
    "Location with a bad port": lambda _: b"HTTP/1.1 302 F\r\nLocation: http://h:99999999/\r\n" + EMPTY,
    "Location with a broken address": lambda _: b"HTTP/1.1 302 F\r\nLocation: http://[::1/\r\n" + EMPTY,
    "Location that is no UTF-8": lambda _: b"HTTP/1.1 302 Found\r\nLocation: /\xff\xfe\r\n" + EMPTY,
    "Location of another kind": lambda _: b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\n" + EMPTY,
    "Location to itself": lambda _: b"HTTP/1.1 302 Found\r\nLocation: /again\r\n" + EMPTY,
    "a redirect with an endless body": lambda s: s.flood(b"HTTP/1.1 302 Found\r\nLocation: http://h..x/\r\n\r\n"),
    "an error with an endless body": lambda s: s.flood(b"HTTP/1.1 404 " + b"n" * 60_000 + b"\r\n\r\n"),
    "chunks that are none": lambda _: OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a chunk of absurd size": lambda _: OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\nx",
    "a negative chunk": lambda _: OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "an absurd length": lambda _: OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "a length in other digits": lambda _: OK + b"Content-Length: \xb2\r\n\r\nabc",
    "less than it says": lambda _: OK + b"Content-Length: 1000\r\n\r\nabc",
    "a large length": lambda _: OK + b"Content-Length: 999999999999999\r\n\r\nabc",
    "a body that never ends": lambda s: s.flood(OK + b"\r\n"),
    "compressed zeros": lambda _: OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(1 << 22)),
    "a body byte by byte": lambda s: s.drip(OK + b"Content-Length: 9000\r\n\r\n"),
    "headers byte by byte": lambda s: s.drip(b"HTTP/1.1 200 OK\r\nX-Long: "),
    "the first line byte by byte": lambda s: s.drip(b""),
    "a range that nobody asked for": lambda _: b"HTTP/1.1 416 No\r\nContent-Range: bytes */77\r\n" + EMPTY,
    "partial without a question": lambda _: b"HTTP/1.1 206 Partial\r\nContent-Length: 3\r\n\r\nabc",
    "no content": lambda _: b"HTTP/1.1 204 None\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_a_location_answers_the_next_one_is_tried(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def patient_after(error: Exception) -> str:
        monkeypatch.setattr(transfer, "RATE_SECONDS", LONG)
        return reason_of(error)

    monkeypatch.setattr(transfer, "RATE_SECONDS", RATE_SECONDS[name.endswith("byte by byte")])
    monkeypatch.setattr(fetching, "reason_of", patient_after)
    with hostile(lambda server: [ANSWERS[name](server)]) as bad, hostile(lambda _: [WHOLE]) as good:
        started = time.monotonic()
        assert got(pinned(f"{bad.url}/tool", f"{good.url}/tool", most_bytes=1 << 20), tmp_path) == BODY
        assert time.monotonic() - started < LONG
    partial = [path for path in (tmp_path / "cache" / "partial").iterdir() if path.stat().st_size > 1 << 20]
    assert not partial, "what is too large is not kept"


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_a_location_answers_it_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RATE_SECONDS", RATE_SECONDS[name.endswith("byte by byte")])
    with hostile(lambda server: [ANSWERS[name](server)]) as bad, pytest.raises(FetchError) as refused:
        got(pinned(f"{bad.url}/tool", most_bytes=1 << 20), tmp_path)
    assert bad.url in refused.value.message
    assert len(refused.value.message) < 4000
    assert len(refused.value.message.splitlines()) >= 3, "the location, and a reason"


def test_a_programs_own_limits_are_a_locations_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> str:
        raise MemoryError

    monkeypatch.setattr(downloading, "attempt", no_memory)
    with pytest.raises(FetchError, match="MemoryError"):
        got(pinned("http://127.0.0.1:9/tool"), tmp_path)


@pytest.mark.usefixtures("impatient")
def test_slow_server_is_named_with_the_way_out(tmp_path: Path) -> None:
    with hostile(lambda s: [s.drip(OK + b"\r\n")]) as slow, pytest.raises(FetchError, match="VMIMAGE_FETCH_RATE"):
        got(pinned(slow.url), tmp_path)


def test_total_time_is_bounded_for_all_attempts_together(tmp_path: Path) -> None:
    started = time.monotonic()
    with (
        hostile(lambda s: [s.drip(OK + b"\r\n", 0.001)]) as slow,
        pytest.raises(UnavailableError, match="FETCH_SECONDS"),
    ):
        download(slow.url, tmp_path / "got", lambda *_: None, Bounds(seconds=0.4, rate=1))
    assert time.monotonic() - started < 2


def test_size_is_bounded_and_the_way_out_is_named(tmp_path: Path) -> None:
    with hostile(lambda _: [WHOLE]) as server:
        with pytest.raises(FetchError, match=r"larger than .*`bytes:` of the pin"):
            got(pinned(server.url, most_bytes=len(BODY) - 1), tmp_path)
        assert got(pinned(server.url, most_bytes=len(BODY)), tmp_path) == BODY


def test_some_of_the_disk_stays_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SPARE_BYTES", 1 << 60)
    monkeypatch.setattr(transfer, "LOOK_BYTES", 100)
    with hostile(lambda _: [WHOLE]) as server, pytest.raises(HostError, match="is full"):
        got(pinned(server.url), tmp_path)


def test_credentials_stay_with_their_host(tmp_path: Path) -> None:
    with hostile(lambda _: [WHOLE]) as other:
        led = b"HTTP/1.1 302 Found\r\nLocation: %s\r\n" + EMPTY
        to_other = f"http://localhost:{other.port}/x".encode()
        with hostile(lambda _: [led % b"/here", led % to_other]) as first:
            assert got(pinned(first.url.replace("//", "//ci:pw@")), tmp_path) == BODY
    assert [b"\r\nAuthorization: Basic" in asked for asked in first.asked] == [True, True]
    assert b"Authorization" not in other.asked[0]


def test_password_and_query_reach_servers_and_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile(lambda _: [WHOLE]) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:secret@"))
        monkeypatch.setenv("no_proxy", "")
        assert got(pinned("http://ci:pw@m.invalid/tool?token=t"), tmp_path) == BODY
    assert proxy.asked[0].startswith(b"GET http://m.invalid/tool?token=t HTTP/1.1\r\n")
    assert b"\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n" in proxy.asked[0]
    assert b"\r\nAuthorization: Basic Y2k6cHc=\r\n" in proxy.asked[0]


@pytest.mark.parametrize("signum", [signal.SIGINT])
def test_stop_ends_downloads_that_nobody_would_end(tmp_path: Path, signum: int) -> None:
    with hostile(lambda s: [s.drip(b"HTTP/1.1 200 OK\r\nX-Long: ")]) as slow, hostile(lambda _: [WHOLE]) as good:
        threading.Timer(0.3, os.kill, (os.getpid(), signum)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            got(pinned(slow.url, good.url), tmp_path)
        assert time.monotonic() - started < 2
        assert not good.asked
    assert not list((tmp_path / "cache" / "work").iterdir())


@pytest.mark.parametrize("text", ["x", "-1", "1e3", " ", "9" * 30])
def test_bounds_of_the_environment_are_numbers(text: str) -> None:
    with pytest.raises(InputError, match="VMIMAGE_FETCH_RATE"):
        fetch_bounds({"VMIMAGE_FETCH_RATE": text})
    assert fetch_bounds({"VMIMAGE_FETCH_RATE": "0", "VMIMAGE_FETCH_SECONDS": "7"}).seconds == 7


# --- Certificates ----------------------------------------------------------------------------------------------


def certificate(folder: Path) -> Path:
    """Write a certificate for localhost that only this test knows, with its key; returns its file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "ca.pem").write_bytes(made.public_bytes(Encoding.PEM))
    return folder / "ca.pem"


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_authority_of_a_company(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, tmp_path / "key.pem")
    with hostile(lambda _: [WHOLE], context) as server:
        url = f"https://localhost:{server.port}/tool"
        with pytest.raises(FetchError, match=r"self.signed certificate.*update-ca-certificates.*SSL_CERT_FILE"):
            got(pinned(url), tmp_path)
        monkeypatch.setenv(variable, str(authority))
        assert got(pinned(url), tmp_path) == BODY
        monkeypatch.setenv(variable, str(tmp_path / "none.pem"))
        with pytest.raises(InputError, match=f"{variable}=.*none.pem"):
            download(url, tmp_path / "got", lambda *_: None)


@pytest.mark.usefixtures("impatient")
def test_handshake_that_never_ends(tmp_path: Path) -> None:
    with hostile(lambda s: [s.drip(b"\x16\x03\x03\x40\x00")]) as slow:
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="VMIMAGE_FETCH_RATE"):
            download(slow.url.replace("http:", "https:"), tmp_path / "got", lambda *_: None)
        assert time.monotonic() - started < 3


# --- Archives --------------------------------------------------------------------------------------------------


def tar_of(name: str, data: bytes, *, pax: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=pax or {}) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(data: bytes, method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("tool", data)
    return buffer.getvalue()


def sparse() -> bytes:
    info = tarfile.TarInfo("tool")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "x", "GNU.sparse.map": "a,b"}
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


TAR = tar_of("tool", BODY)
WAYS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "two gz": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "two bz2": lambda data: bz2.compress(data[:700]) + bz2.compress(data[700:]),
    "two xz": lambda data: lzma.compress(data[:700]) + bytes(8) + lzma.compress(data[700:]),
    "zeros behind": lambda data: gzip.compress(data) + bytes(512),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_compression(way: str, tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(WAYS[way](TAR))
    extract_member(tmp_path / "archive", "tool", tmp_path / "tool", most_bytes=1 << 20)
    assert (tmp_path / "tool").read_bytes() == BODY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "tool"]


ZEROS = bytes(2 << 20)
ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "gz bomb": (lambda: gzip.compress(ZEROS), "more than 1024 KiB when decompressed|more than 1 MiB"),
    "bz2 bomb": (lambda: bz2.compress(ZEROS), "when decompressed"),
    "xz bomb": (lambda: lzma.compress(ZEROS, preset=0), "when decompressed"),
    "xz with a large dictionary": (
        lambda: lzma.compress(TAR, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 32 << 20}]), "not a readable"),
    "cut bz2": (lambda: bz2.compress(TAR)[:-20], "not a readable archive"),
    "cut xz": (lambda: lzma.compress(TAR)[:-20], "not a readable archive"),
    "cut gz": (lambda: gzip.compress(TAR)[:-20], "not a readable archive"),
    "cut tar": (lambda: TAR[:700], "not a readable archive|no tool"),
    "zip bomb": (lambda: zip_of(ZEROS, zipfile.ZIP_DEFLATED), "the member has"),
    "zip with lzma": (lambda: zip_of(BODY, zipfile.ZIP_LZMA), "not supported"),
    "a header of 2 MiB": (lambda: tar_of("tool", b"x", pax={"comment": "y" * (2 << 20)}), "header of more than"),
    "sparse": (sparse, "not a|no tool"),
    "no archive": (lambda: b"<html>", "not a readable archive"),
    "nothing": (lambda: b"", "not a readable archive"),
    "large member": (lambda: tar_of("tool", bytes(2 << 20)), "the member has 2 MiB|2048 KiB"),
    "many members": (lambda: b"".join(tarfile.TarInfo(f"m{n}").tobuf() for n in range(60)), "more than 50 files"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_too_much(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MOST_INDEX_BYTES", 1 << 20)
    monkeypatch.setattr(unpack, "MOST_MEMBERS", 50)
    monkeypatch.setattr(unpack, "MOST_MEMORY", 16 << 20)
    make, why = ARCHIVES[name]
    (tmp_path / "archive").write_bytes(make())
    limit = 64 << 20 if name == "a header of 2 MiB" else 1 << 20
    with pytest.raises(UnavailableError, match=why):
        extract_member(tmp_path / "archive", "tool", tmp_path / "tool", most_bytes=limit)
    assert not list(tmp_path.glob("*.tar"))


def test_unpacking_ends_when_it_is_told_to(tmp_path: Path) -> None:
    def stop() -> None:
        raise UnavailableError("stopped")

    (tmp_path / "archive").write_bytes(gzip.compress(TAR))
    with pytest.raises(UnavailableError, match="stopped"):
        extract_member(tmp_path / "archive", "tool", tmp_path / "tool", most_bytes=1 << 20, check=stop)
