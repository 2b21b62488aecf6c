"""How the guest's command runs others: bounded in time and in what they answer; with helm and kubectl's real minds."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dev_env import Failure, api, charts, tools
from dev_env.api import Api

from tests.tools import pinned_tools


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH for programs that stand for others."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def test_what_a_program_answers_has_an_end(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "OUTPUT_BYTES", 1 << 20)
    program(programs, "floods", "exec yes")
    with pytest.raises(Failure, match="answered more than 1 MiB"):
        tools.run(["floods"])
    program(programs, "complains", "yes complaint | head -c 3000000 >&2; echo the reason >&2; exit 3")
    with pytest.raises(Failure, match="the reason") as failed:
        tools.run(["complains"])
    assert len(str(failed.value)) < 70_000


def test_program_that_does_not_end_is_ended(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(programs, "hangs", "trap '' TERM; echo $$ > pid; while :; do sleep 0.1; done")
    monkeypatch.setattr(tools, "END_SECONDS", 0.3)
    monkeypatch.chdir(programs)
    with pytest.raises(Failure, match=r"did not end within 0 s|did not end within 1 s"):
        tools.run(["hangs"], seconds=0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int((programs / "pid").read_text()), 0)


SAID_BY_HELM = """\
E1128 08:06:58.441709    7602 request.go:1198] "Unexpected error when reading response body" err="stream error: stream \
ID 3; INTERNAL_ERROR; received from peer"
Error: list: failed to list: unexpected error when reading response body. Please retry. Original error: stream error"""


def test_what_only_asks_is_asked_again_while_the_cluster_is_too_busy(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """helm said so of the real k3s, emulated on two processors."""
    monkeypatch.setattr(tools, "AGAIN_SECONDS", 0.01)
    monkeypatch.chdir(programs)
    (programs / "said").write_text(SAID_BY_HELM)
    program(programs, "helm", "echo x >> asked; [ $(wc -l < asked) -gt 2 ] && { echo []; exit; }; cat said >&2; exit 1")
    assert tools.ask(["helm", "list"]) == []
    assert (programs / "asked").read_text() == "x\n" * 3
    # Only what changes nothing may be done twice.
    (programs / "asked").unlink()
    with pytest.raises(Failure, match="Please retry"):
        tools.run(["helm", "upgrade"])
    assert (programs / "asked").read_text() == "x\n"


def test_what_is_wrong_is_not_asked_again_and_a_busy_cluster_not_for_ever(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "AGAIN_SECONDS", 0.01)
    monkeypatch.chdir(programs)
    program(programs, "helm", "echo x >> asked; echo Error: no such flag >&2; exit 1")
    with pytest.raises(Failure, match="no such flag"):
        tools.ask(["helm", "list"])
    assert (programs / "asked").read_text() == "x\n"
    program(programs, "helm", "echo Please retry >&2; exit 1")
    with pytest.raises(Failure, match="Please retry"):
        tools.ask(["helm", "list"], seconds=0.2)


def test_child_that_holds_the_pipe_does_not_hold_us(programs: Path) -> None:
    program(programs, "leaves", "sleep 20 & echo $!")
    begun = time.monotonic()
    child = int(tools.run(["leaves"]))
    assert time.monotonic() - begun < 10
    os.kill(child, 9)


def test_child_that_writes_on_does_not_hold_us(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As of a child that writes as fast as it is read: whenever one looks, there is more.
    monkeypatch.setattr("select.select", lambda readable, *_: (readable, [], []))
    monkeypatch.setattr(tools, "END_SECONDS", 0.2)
    program(programs, "leaves", "sleep 20 & echo $!")
    begun = time.monotonic()
    child = int(tools.run(["leaves"]))
    assert time.monotonic() - begun < 10
    os.kill(child, 9)


def test_what_cannot_be_started_is_told(programs: Path) -> None:
    (programs / "garbage").write_bytes(b"\x7fELF garbage")
    (programs / "garbage").chmod(0o755)
    for argv in (["garbage"], ["a\0b"], ["not-there"]):
        with pytest.raises(Failure, match=r"cannot be started|is not installed"):
            tools.run(argv)
    program(programs, "says", "printf '%s' '{\"a\": '")
    with pytest.raises(Failure, match="did not answer in JSON"):
        tools.ask(["says"])
    program(programs, "says", "head -c 5000 /dev/zero | tr '\\0' '['")
    with pytest.raises(Failure, match="did not answer in JSON"):
        tools.ask(["says"])


def test_output_is_read_while_it_runs(programs: Path) -> None:
    program(programs, "talks", "yes words | head -c 2000000; echo end")
    assert tools.run(["talks"]).endswith("end\n")
    assert tools.run(["cat"], stdin="größe" * 100_000) == "größe" * 100_000


class _Other(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 - of all requests of a test

    def do_any(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = do_CONNECT = do_any  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def other() -> Iterator[str]:
    """The URL of another cluster's API server."""
    _Other.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def kubeconfig(path: Path, server: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }))  # fmt: skip
    return path


def test_no_variable_and_no_file_of_a_shell_makes_helm_or_kubectl_ask_another_cluster(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(pinned_tools(tmp_path)), prepend=os.pathsep)
    # Nothing listens there: what is asked must fail, and not go elsewhere. A name, so that a proxy would be used.
    own = kubeconfig(tmp_path / "k3s.yaml", "http://own.invalid:9")
    for module in (api, tools):
        monkeypatch.setattr(module, "KUBECONFIG", own)
    staging = kubeconfig(tmp_path / "home" / ".kube" / "config", other)
    (tmp_path / "home" / ".kube" / "kuberc").write_text(
        "apiVersion: kubectl.config.k8s.io/v1beta1\nkind: Preference\ndefaults:\n- command: get\n  options:\n"
        f"  - name: server\n    default: {other}\n"
    )
    for name, value in {
        "HOME": str(tmp_path / "home"), "KUBECONFIG": str(staging), "HELM_KUBEAPISERVER": other,
        "HELM_KUBECONTEXT": "c", "HELM_DRIVER": "memory", "KUBERNETES_MASTER": other, "HTTP_PROXY": other,
        "HTTPS_PROXY": other, "ALL_PROXY": other, "http_proxy": other, "https_proxy": other, "all_proxy": other,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(Failure):
        charts.installed(ours=True)
    with pytest.raises(Failure):
        tools.ask(["kubectl", "get", "pods", "--output=json"])
    with pytest.raises(Failure):
        Api().items("Pod")
    assert _Other.asked == []
