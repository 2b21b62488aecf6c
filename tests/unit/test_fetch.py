"""Against a real HTTP server on the loopback; the PyPI location is seen in tests/e2e, which fetches for real."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vmimage.cache.store import Store
from vmimage.plan import PinnedFile, Source
from vmimage.stages import fetch as fetching
from vmimage.stages.fetch import fetch, stored_path
from vmimage.util import download as downloading
from vmimage.util.console import Step
from vmimage.util.errors import FetchError, HostError

BODY = bytes(range(256)) * 5000


class Server(ThreadingHTTPServer):
    """Serves `files`; `faults` are answered first, one a request: a status, or bytes after which it hangs up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[int] = []
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        fault = self.server.faults.pop(0) if self.server.faults else 0
        body = self.server.files.get(self.path)
        if 400 <= fault < 600 or body is None:
            self.send_error(fault or 404)
            return
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and self.server.ranges else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + fault] if fault else body[start:])

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloading, "BACKOFF_SECONDS", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def quiet() -> Step:
    return Step(lambda event, text: None, None, None)


def pinned(*sources: Source, body: bytes = BODY) -> PinnedFile:
    digest = hashlib.sha256(body).hexdigest()
    return PinnedFile(name="tool", version="v1", arch="amd64", sha256=digest, sources=sources)


def url(server: Server, path: str = "/tool", *members: str) -> Source:
    return Source(kind="url", where=server.url + path, members=members)


def fetch_one(file: PinnedFile, store: Store) -> bytes:
    return fetch([file], store, quiet())["tool"].read_bytes()


def nothing_left(store: Store) -> bool:
    return not list((store.root / "files").iterdir()) and not list((store.root / "work").iterdir())


def test_download(server: Server, store: Store) -> None:
    server.files["/tool"] = BODY
    assert fetch_one(pinned(url(server)), store) == BODY
    assert fetch_one(pinned(url(server)), store) == BODY
    assert len(server.requests) == 1, "the second time it comes from the store"


def test_file_that_is_had_stays_until_it_has_been_fetched_again(server: Server, store: Store) -> None:
    server.files["/tool"] = BODY
    file = pinned(url(server))
    assert fetch_one(file, store) == BODY
    del server.files["/tool"]
    with pytest.raises(FetchError):
        fetch([file], store, quiet(), fresh=True)
    assert fetch_one(file, store) == BODY
    server.files["/tool"] = BODY
    before = len(server.requests)
    assert fetch([file], store, quiet(), fresh=True)["tool"].read_bytes() == BODY
    assert len(server.requests) == before + 1


def test_full_disk_is_told_as_such(server: Server, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(url: str, to: Path, progress: object, bounds: object) -> None:
        Path("/dev/full").write_bytes(BODY)

    monkeypatch.setattr(downloading, "download", full)
    with pytest.raises(HostError, match="is full; nothing half-made was kept"):
        fetch_one(pinned(url(server)), store)


def test_broken_connection_is_resumed(server: Server, store: Store) -> None:
    server.files["/tool"] = BODY
    server.faults = [200_000, 100_000]
    assert fetch_one(pinned(url(server)), store) == BODY
    assert [wanted for _, wanted in server.requests] == [None, "bytes=200000-", "bytes=300000-"]


def test_download_of_a_killed_run_is_resumed(server: Server, store: Store) -> None:
    server.files["/tool"] = BODY
    file = pinned(url(server))
    partial = fetching._partial(file.sources[0], file, store)
    partial.parent.mkdir()
    partial.write_bytes(BODY[:7000])
    assert fetch_one(file, store) == BODY
    assert server.requests == [("/tool", "bytes=7000-")]


def test_link_in_the_place_of_a_partial_download_is_not_written_through(
    server: Server, store: Store, tmp_path: Path
) -> None:
    server.files["/tool"] = BODY
    file = pinned(url(server))
    partial = fetching._partial(file.sources[0], file, store)
    partial.parent.mkdir()
    (tmp_path / "victim").write_bytes(b"mine")
    partial.symlink_to(tmp_path / "victim")
    assert fetch_one(file, store) == BODY
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_download_that_was_complete_already(server: Server, store: Store) -> None:
    server.files["/tool"] = BODY
    file = pinned(url(server))
    partial = fetching._partial(file.sources[0], file, store)
    partial.parent.mkdir()
    partial.write_bytes(BODY)
    assert fetch_one(file, store) == BODY


def test_server_without_ranges_starts_anew(server: Server, store: Store) -> None:
    server.files["/tool"] = BODY
    server.ranges = False
    server.faults = [1000]
    assert fetch_one(pinned(url(server)), store) == BODY


def test_server_errors_are_retried(server: Server, store: Store) -> None:
    server.files["/tool"] = BODY
    server.faults = [503, 429]
    assert fetch_one(pinned(url(server)), store) == BODY


def test_retries_end(server: Server, store: Store) -> None:
    server.faults = [500] * 10
    with pytest.raises(FetchError, match="HTTP 500"):
        fetch_one(pinned(url(server)), store)
    assert len(server.requests) == downloading.ATTEMPTS
    assert nothing_left(store)


def test_missing_file_is_not_retried_and_the_next_location_serves(server: Server, store: Store) -> None:
    server.files["/other"] = BODY
    assert fetch_one(pinned(url(server), url(server, "/other")), store) == BODY
    assert [path for path, _ in server.requests] == ["/tool", "/other"]


def test_wrong_content_is_refused_with_both_digests_and_never_reused(server: Server, store: Store) -> None:
    server.files["/tool"] = b"something else"
    file = pinned(url(server))
    for _ in range(2):
        with pytest.raises(FetchError) as refused:
            fetch_one(file, store)
        assert refused.value.exit_code == 4
        assert file.sha256 in refused.value.message
        assert hashlib.sha256(b"something else").hexdigest() in refused.value.message
        assert nothing_left(store)
    assert server.requests == [("/tool", None)] * 2, "the second run did not go on with the refused bytes"
    server.files["/tool"] = BODY
    assert fetch_one(file, store) == BODY


def test_wrong_content_is_passed_over(server: Server, store: Store) -> None:
    server.files |= {"/tool": b"wrong", "/other": BODY}
    assert fetch_one(pinned(url(server), url(server, "/other")), store) == BODY


def test_bytes_of_another_file_before_the_resumed_ones_are_refused(server: Server, store: Store) -> None:
    server.files["/tool"] = BODY
    file = pinned(url(server))
    partial = fetching._partial(file.sources[0], file, store)
    partial.parent.mkdir()
    partial.write_bytes(b"x" * 7000)
    with pytest.raises(FetchError, match="wrong content"):
        fetch_one(file, store)
    assert fetch_one(file, store) == BODY


def test_every_location_and_reason_is_named(server: Server, store: Store, tmp_path: Path) -> None:
    sources = [
        Source(kind="path", where=str(tmp_path / "none")),
        Source(kind="url", where="http://name.invalid/tool"),
        Source(kind="url", where="http://127.0.0.1:9/tool"),
        url(server),
    ]
    with pytest.raises(FetchError) as refused:
        fetch_one(pinned(*sources), store)
    text = refused.value.message
    assert "tool v1 (amd64) could not be had" in text
    for part in (
        str(tmp_path / "none"),
        "no such file",
        "cannot resolve the name name.invalid",
        "refused the connection",
    ):
        assert part in text
    assert "HTTP 404" in text
    assert "--mirror" in refused.value.hint


def test_every_missing_file_is_named(server: Server, store: Store) -> None:
    one, other = pinned(url(server)), pinned(url(server, "/b"), body=b"b")
    with pytest.raises(FetchError) as refused:
        fetch([one, other], store, quiet())
    assert refused.value.message.count("could not be had") == 2


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_member_of_nested_archives(server: Server, store: Store) -> None:
    server.files["/a.zip"] = zipped({"in.tgz": tar({"package/tool": BODY, "../../evil": b"x"})})
    assert fetch_one(pinned(url(server, "/a.zip", "in.tgz", "package/tool")), store) == BODY


@pytest.mark.parametrize(
    ("member", "why"), [("none", "the archive has no none"), ("link", "not"), ("../x", "the archive has no ../x")]
)
def test_member_that_is_no_file(server: Server, store: Store, member: str, why: str) -> None:
    server.files["/a.tgz"] = tar({"tool": BODY})
    with pytest.raises(FetchError, match=why):
        fetch_one(pinned(url(server, "/a.tgz", member)), store)


def test_member_of_something_that_is_no_archive(server: Server, store: Store) -> None:
    server.files["/a.tgz"] = b"<html>not found</html>"
    with pytest.raises(FetchError, match="not a readable archive"):
        fetch_one(pinned(url(server, "/a.tgz", "tool")), store)


def test_archive_with_damaged_data(server: Server, store: Store) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tool", BODY)
    data = bytearray(buffer.getvalue())
    data[40:60] = b"\xff" * 20
    server.files["/a.zip"] = bytes(data)
    with pytest.raises(FetchError, match="not a readable archive"):
        fetch_one(pinned(url(server, "/a.zip", "tool")), store)


def test_truncated_archive(server: Server, store: Store) -> None:
    server.files["/a.tgz"] = tar({"tool": BODY})[:-200]
    with pytest.raises(FetchError, match=r"not a readable archive|wrong content"):
        fetch_one(pinned(url(server, "/a.tgz", "tool")), store)


def test_local_directory(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "tool-v1-amd64"
    path.write_bytes(BODY)
    assert fetch_one(pinned(Source(kind="path", where=str(path))), store) == BODY
    assert path.read_bytes() == BODY


def test_stored_file_has_its_digest_as_name(server: Server, store: Store) -> None:
    server.files["/tool"] = BODY
    file = pinned(url(server))
    fetch_one(file, store)
    assert stored_path(file, store).name == hashlib.sha256(BODY).hexdigest()
