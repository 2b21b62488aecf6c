"""Upstreams that are slow, endless, cut off or nonsense: each is the failure of its pin, and nothing is written."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.hostile_server import Answer, Hostile, hostile
from tests.unit.test_fetch_hostile import ANSWERS, EMPTY, OK
from tests.unit.test_update import Trial, trial
from tests.upstream import digest
from vmimage.commands.update import ask, command
from vmimage.commands.update.answers import published_digest, published_version
from vmimage.commands.update.ask import Upstream, instead_of
from vmimage.commands.update.rewrite import Change, rewritten
from vmimage.commands.update.version import minors_apart, version_of
from vmimage.util import download as downloading
from vmimage.util import transfer
from vmimage.util.errors import InputError
from vmimage.util.location import UnavailableError
from vmimage.util.settings import Bounds
from vmimage.util.urls import is_safe

__all__ = ["trial"]

A, B = digest("a"), digest("b")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(transfer, "POLL_SECONDS", 0.05)
    # On a busy host, any server may be slow for a moment.
    monkeypatch.setattr(transfer, "RATE_SECONDS", 30.0)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


def whole(body: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


def asked(work: Path, *answers: Callable[[Hostile], Answer], seconds: float = 5.0) -> tuple[str, Hostile]:
    """Ask a server that gives these answers, one after the other."""
    with hostile(lambda server: [answer(server) for answer in answers]) as server:
        return Upstream([], work, Bounds(seconds=seconds)).text(f"{server.url}/page"), server


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_upstream_answers_is_refused_soon(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.endswith("byte by byte"):
        monkeypatch.setattr(transfer, "RATE_SECONDS", 0.15)
    started = time.monotonic()
    with pytest.raises(UnavailableError) as refused:
        published_version(asked(tmp_path, ANSWERS[name])[0], None)
    assert time.monotonic() - started < 6
    assert 5 < len(str(refused.value)) < 3000
    assert not list(tmp_path.iterdir())


CUT: dict[str, Callable[[Hostile], Answer]] = {
    "before its length": lambda _: OK + b"Content-Length: 9\r\n\r\nv1.37.1",
    "in its chunks": lambda _: OK + b"Transfer-Encoding: chunked\r\n\r\n7\r\nv1.37.1\r\n",
    "in a chunk": lambda _: OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nv1.37.1",
    "and nobody can tell": lambda _: OK + b"\r\nv1.37.1",
    "a part that nobody asked for": lambda _: b"HTTP/1.1 206 P\r\nContent-Length: 7\r\n\r\nv1.37.1",
}


@pytest.mark.parametrize("name", CUT)
def test_answer_that_is_cut_off_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        asked(tmp_path, CUT[name])


def test_two_halves_are_not_put_together(tmp_path: Path) -> None:
    first = OK + b"Content-Length: 7\r\n\r\nv1.3"
    text, server = asked(tmp_path, lambda _: first, lambda _: whole(b"v2.4.5"))
    assert text == "v2.4.5"
    assert not any(b"Range" in request for request in server.asked)


def test_answer_in_chunks_is_taken(tmp_path: Path) -> None:
    text, _ = asked(tmp_path, lambda _: OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nv1.\r\n4\r\n37.1\r\n0\r\n\r\n")
    assert text == "v1.37.1"


def test_large_answer_is_refused_and_no_option_of_pins_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="is larger than 1 MiB") as refused:
        asked(tmp_path, lambda _: whole(bytes(ask.MOST_BYTES + 1)))
    assert "bytes:" not in str(refused.value)


@pytest.mark.parametrize(
    "to", ["http://localhost:{port}/x", "http://192.0.2.1/x", "file:///etc/passwd", "ftp://192.0.2.1/x", "//192.0.2.1/"]
)
def test_redirect_to_where_others_answer_is_refused(to: str, tmp_path: Path) -> None:
    with hostile(lambda _: [whole(b"v9.9.9")]) as other:
        led = b"HTTP/1.1 302 Found\r\nLocation: %s\r\n" % to.format(port=other.port).encode() + EMPTY
        with pytest.raises(UnavailableError, match=r"leads on to .* only https proves who answers"):
            asked(tmp_path, lambda _: led)
        assert not other.asked


def test_redirect_at_the_same_place_is_followed(tmp_path: Path) -> None:
    led = b"HTTP/1.1 302 Found\r\nLocation: /there\r\n" + EMPTY
    text, server = asked(tmp_path, lambda _: led, lambda _: whole(b"v1.2.3"))
    assert text == "v1.2.3"
    assert server.asked[1].startswith(b"GET /there ")


def test_redirect_from_https_leads_to_https_only() -> None:
    transfer._require_as_safe("https://dl.k8s.io/a", "https://cdn.dl.k8s.io/a")
    transfer._require_as_safe("https://dl.k8s.io/a", "HTTPS://dl.k8s.io/b")
    for to in ("http://dl.k8s.io/a", "http://127.0.0.1/a", "file:///a", "http://dl.k8s.io:443/a"):
        with pytest.raises(UnavailableError):
            transfer._require_as_safe("https://dl.k8s.io/a", to)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://dl.k8s.io/x", True),
        ("http://127.0.0.1:1/x", True),
        ("http://[::1]/x", True),
        ("http://localhost/x", True),
        ("http://dl.k8s.io/x", False),
        ("http://localhost.example.com/x", False),
        ("http://127.0.0.1@dl.k8s.io/x", False),
        ("http://[::1/x", False),
        ("ftp://127.0.0.1/x", False),
    ],
)
def test_only_https_is_asked_but_for_this_host(url: str, safe: bool, tmp_path: Path) -> None:
    assert is_safe(url) == safe
    if not safe:
        with pytest.raises(UnavailableError, match="only https proves who answers"):
            Upstream([], tmp_path, Bounds()).text(url)


def test_mirrors_of_upstream(tmp_path: Path) -> None:
    pairs = instead_of(["https://a.example/k8s=https://m.example/k", "https://a.example/=https://n.example/"])
    upstream = Upstream(pairs, tmp_path, Bounds())
    found = {url: upstream.instead_of(f"https://a.example{url}") for url in ("/k8s/x", "/k8s-other/x", "/k8s", "/y")}
    assert found == {
        "/k8s/x": "https://m.example/k/x",
        "/k8s-other/x": "https://n.example/k8s-other/x",
        "/k8s": "https://m.example/k",
        "/y": "https://n.example/y",
    }
    assert upstream.instead_of("https://a.example.org/") == "https://a.example.org/"


@pytest.mark.parametrize("given", ["", "x", "https://a/", "https://a/=/srv", "a=https://b/", "https://a/=http://b/"])
def test_wrong_mirrors_of_upstream(given: str) -> None:
    with pytest.raises(InputError, match="--upstream"):
        instead_of([given])


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "v1", "1", "latest", "v1.37.1\n\n", "v1.37.1 ", " v1.37.1", "v1.37.1\x1b[2J", "v1.37.1\0",
        "v1.37.1\u202e",
        "v1.37.\u0661", "v01.2.3", "v1.2.3/../..", "v1.2.3+", "v1.2.3-", "v" + "1" * 5000, "v1.2.3+" + "x" * 5000,
        "<!DOCTYPE html><html>v1.37.1</html>", "v1.37.1\nv1.37.2", "{}", "{", '{"tag_name": 7}', '{"tag_name": null}',
        '{"tag_name": "v1.2.3", "prerelease": true}', '{"tag_name": "v1.2.3", "draft": true}',
        '{"tag_name": "v1.2.3", "tag_name": "v1.2.4"}', '{"message": "API rate limit exceeded"}', "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(UnavailableError) as refused:
        published_version(text, None)
    said = str(refused.value)
    assert len(said) < 300
    assert said.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "", "v1.37.1", "[]", "{}", '{"data": 7}', '{"data": [7, null]}',
        '{"data": [{"name": "latest", "latest": "v1.2.3"}]}',
        '{"data": [{"name": "stable"}]}', '{"data": [{"name": "stable", "latest": 7}]}',
        '{"data": [{"name": "stable", "latest": "v1.2.3\\u001b[2J"}]}', '{"data": {"stable": "v1.2.3"}}',
        '{"data": [{"name": "stable", "latest": "v1.2.3"}, {"name": "stable", "latest": "v1.2.4"}]}',
        '{"data": ' + "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_channel(text: str) -> None:
    with pytest.raises(UnavailableError) as refused:
        published_version(text, "stable")
    assert str(refused.value).isprintable()


def test_versions_that_are_taken() -> None:
    assert published_version("v1.37.1", None).text == "v1.37.1"
    assert published_version("v4.3.1\r\n", None).text == "v4.3.1"
    assert published_version('{"tag_name": "v4.3.1", "prerelease": false, "draft": false}', None).text == "v4.3.1"
    listed = json.dumps({"data": [{"id": "stable", "latest": "v1.36.4+k3s1"}, {"id": "x"}]})
    assert published_version(listed, "stable").text == "v1.36.4+k3s1"


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "<html>", A[:-1], A + "0", f"{A}\n{B}", f"{A} tool.exe", f"{A}  other", f"{A}  dir/tool",
        f"{A}  tool\n{B}  tool\n", f"{A}  tool\nNot Found\n", f"{A}\ttool", f"{A} tool", f"x{A}  tool", f"{A}  tool\0",
        f"{A}  TOOL", f"{A}  \x1b[2Jtool", "SHA256 (tool) = " + A, "\x1b[2J" * 1000, f"{A}  a\n" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_checksum_of_the_file(text: str) -> None:
    with pytest.raises(UnavailableError) as refused:
        published_digest(text, "tool")
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        A,
        f"{A}\n",
        f" {A}  ",
        A.upper(),
        f"{A}  tool",
        f"{A} *tool\n",
        f"{B}  tool.exe\r\n{A}  ./tool\r\n",
        f"{A}  tool\n" * 2,
    ],
)
def test_checksums_that_are_taken(text: str) -> None:
    assert published_digest(text, "tool") == A


def test_versions_are_ordered() -> None:
    texts = ["v0.9.9", "v1.2", "v1.2.3-alpha.2", "v1.2.3-rc9+k3s9", "v1.2.3-rc10", "v1.2.3", "v1.2.3+k3s1"]
    texts += ["v1.2.3+k3s2", "v1.2.3+k3s10", "v1.2.10", "v1.10.0", "v2.0.0"]
    found = [version for text in texts if (version := version_of(text))]
    shuffled = [*found[1::2], *found[::2]]
    assert [each.text for each in sorted(shuffled, key=lambda each: each.order)] == texts
    assert minors_apart(found[-2], found[-3]) == 8
    assert minors_apart(found[-1], found[-2]) > 1


@pytest.mark.parametrize(
    ("page", "body"),
    [
        ("dl.k8s.io/release/stable.txt", "<html>captive portal</html>"),
        ("dl.k8s.io/release/stable.txt", "v1.37.2\x1b[2J"),
        ("dl.k8s.io/release/stable.txt", "v1.37.2-rc.1"),
        ("dl.k8s.io/release/v1.37.2/bin/linux/arm64/kubectl.sha256", "<html>"),
        ("dl.k8s.io/release/v1.37.2/bin/linux/arm64/kubectl.sha256", f"{A}  kubectl.exe"),
        ("dl.k8s.io/release/v1.37.2/bin/linux/arm64/kubectl.sha256", A[:-1]),
        ("dl.k8s.io/release/v1.37.2/bin/linux/arm64/kubectl.sha256", ""),
    ],
)
def test_nothing_of_a_pin_is_written_when_one_answer_is_wrong(trial: Trial, page: str, body: str) -> None:
    before = trial.path.read_bytes()
    trial.pages.kubectl("v1.37.2")
    trial.pages.put(page, body)
    assert trial.run("kubectl") == 4
    assert trial.states == {"kubectl": "failed"}
    assert page in trial.error
    assert "\x1b" not in trial.error
    assert trial.path.read_bytes() == before


@pytest.mark.parametrize("what", ["missing", "another", "no archive", "without helm"])
def test_archive_that_is_not_what_was_published(trial: Trial, what: str) -> None:
    before = trial.path.read_bytes()
    trial.pages.helm("v4.3.2", trial.mirror)
    archive = trial.mirror / "helm-v4.3.2-linux-amd64.tar.gz"
    if what == "missing":
        archive.unlink()
    elif what == "another":
        archive.write_bytes(archive.read_bytes() + b"x")
    else:
        body = b"no tar" if what == "no archive" else b"\0" * 10240
        archive.write_bytes(body)
        trial.pages.put(f"get.helm.sh/{archive.name}.sha256sum", f"{digest(body.decode())}  {archive.name}\n")
    text = before.decode().replace("      - url: https://get.helm.sh/", "      - url: http://127.0.0.1:9/")
    trial.path.write_text(text)
    assert trial.run("helm") == 4
    assert trial.states == {"helm": "failed"}
    assert "could not be had" in trial.error
    assert trial.path.read_text() == text


@pytest.mark.parametrize("wrong", ["another pin", "another key", "no YAML", "a number"])
def test_file_that_says_something_else_is_not_written(
    trial: Trial, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = {
        "another pin": ("v4.3.1", "v4.3.2"),
        "another key": ("default: dev-env", "default: toolbox"),
        "no YAML": ("pins:", "pins: ["),
        "a number": ("version: v1.37.2", "version: 1.37"),
    }[wrong]
    before = trial.path.read_bytes()
    trial.pages.kubectl("v1.37.2")

    def mistaken(text: str, changes: Mapping[str, Change]) -> str:
        return rewritten(text, changes).replace(old, new)

    monkeypatch.setattr(command, "rewritten", mistaken)
    assert trial.run("kubectl") == 2
    assert trial.path.read_bytes() == before
    assert len(list(trial.path.parent.iterdir())) == 3
