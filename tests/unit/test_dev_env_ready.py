"""How far the environment is, on answers that a real k3s v1.36 gave while it started."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dev_env import Failure, ready
from dev_env.api import NotBegun
from dev_env.ready import CLUSTER, HOST_NAMES, NODE, POD_NAMES, Readiness, Watch

BOOT_ID = "0a1b"
VERSION = "v1.36.4+k3s1"
STARTING = "\n".join(["[+]ping ok", *["[+]poststarthook/a ok"] * 38, "[-]poststarthook/rbac/bootstrap-roles failed: "
                      "reason withheld", "readyz check failed"])  # fmt: skip


def node(boot: str = BOOT_ID, status: str = "True") -> dict[str, Any]:
    info = {"bootID": boot, "kubeletVersion": VERSION}
    return {"status": {"nodeInfo": info, "conditions": [{"type": "Ready", "status": status}]}}


def deployment(name: str, available: int) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"availableReplicas": available}}


class Cluster:
    """Answers in the place of an API; what it answers can be changed."""

    def __init__(self) -> None:
        self.readyz: tuple[int, str] = (200, "ok")
        self.nodes = [node()]
        self.deployments = [deployment("metrics-server", 1), deployment("local-path-provisioner", 1)]

    def answer(self, _method: str, _path: str) -> tuple[int, str]:
        return self.readyz

    def items(self, kind: str, _namespace: str = "") -> list[dict[str, Any]]:
        return {"Node": self.nodes, "Deployment": self.deployments, "Service": []}[kind]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    found = Cluster()
    (tmp_path / "boot").write_text(f"{BOOT_ID}\n")
    monkeypatch.setattr(ready, "BOOT", tmp_path / "boot")
    monkeypatch.setattr(ready, "SETTINGS", tmp_path / "config.yaml")
    monkeypatch.setattr(ready, "READY", tmp_path / "run" / "ready.json")
    monkeypatch.setattr(ready, "Api", lambda: found)
    monkeypatch.setattr(ready, "k3s_version", lambda: VERSION)
    monkeypatch.setattr(ready, "_pod_names_lack", lambda *_: "")
    monkeypatch.setattr(ready, "_host_names_lack", lambda *_: "")
    return found


def test_all_is_there(cluster: Cluster) -> None:
    assert Watch().look() == Readiness({CLUSTER: "", NODE: "", POD_NAMES: "", HOST_NAMES: ""}, [])


def test_answer_of_a_cluster_that_starts_is_one_short_line(cluster: Cluster) -> None:
    cluster.readyz = (500, STARTING)
    assert Watch().look().waiting == "cluster: 39 of 40 of its checks passed"
    cluster.readyz = (401, "")
    assert Watch().look().waiting == "cluster: it answers 401"


def test_kubeconfig_that_is_not_there_yet(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise NotBegun("k3s.yaml is not there yet")

    monkeypatch.setattr(ready, "Api", none)
    assert Watch().look().waiting == "cluster: it has not begun"


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([], "it has not reported since the machine was switched on"),
        ([node(boot="before")], "it has not reported since the machine was switched on"),
        ([node(status="Unknown")], "it is not ready"),
        ([node(boot="another machine"), node()], ""),
    ],
)
def test_node_is_this_machine_as_it_runs_now(cluster: Cluster, nodes: list[Any], why: str) -> None:
    cluster.nodes = nodes
    seen = Watch().look()
    assert seen.lacks[NODE] == why
    assert seen.lacks[HOST_NAMES] == ("waits for the node" if why else "")


def test_node_of_an_older_k3s(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "k3s_version", lambda: "v1.36.5+k3s1")
    assert Watch().look().waiting == f"node: it still runs {VERSION}"


def test_metrics_server_is_told_and_not_waited_for(cluster: Cluster) -> None:
    cluster.deployments = [deployment("metrics-server", 0)]
    seen = Watch().look()
    assert (seen.waiting, seen.starting) == ("", ["metrics-server", "local-path-provisioner"])
    assert list(ready.told(seen)) == [
        "ready",
        "starting: metrics-server, local-path-provisioner (nothing waits for these)",
    ]


def test_what_the_settings_leave_out_is_not_waited_for(cluster: Cluster) -> None:
    cluster.deployments = []
    # Only `disable` counts: not comments, and no other key.
    ready.SETTINGS.write_text("# coredns\nnode-name: coredns\ndisable: [traefik, metrics-server]\n")
    seen = Watch().look()
    assert list(seen.lacks) == [CLUSTER, NODE, POD_NAMES]
    assert seen.starting == ["local-path-provisioner"]
    ready.SETTINGS.write_text("disable: coredns,local-storage\n")
    assert list(Watch().look().lacks) == [CLUSTER, NODE, HOST_NAMES]


def test_waiting_says_what_for_and_how_long_and_notes_when_each_part_was_there(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    clock = iter(range(100, 1000, 20))
    steps: Iterator[Callable[[], None]] = iter(
        [
            lambda: setattr(cluster, "readyz", (500, STARTING)),
            lambda: None,
            lambda: None,
            lambda: vars(cluster).update(readyz=(200, "ok"), nodes=[]),
            lambda: setattr(cluster, "nodes", [node()]),
        ]
    )
    monkeypatch.setattr(ready, "uptime", lambda: float(next(clock)))
    monkeypatch.setattr("time.sleep", lambda _: next(steps)())
    cluster.readyz = (500, "")
    reached = ready.wait(said.append, 60)
    assert said == [
        "waiting for cluster: it answers 500 (20 s so far)",
        "waiting for cluster: 39 of 40 of its checks passed (60 s so far)",
        "waiting for node: it has not reported since the machine was switched on (100 s so far)",
    ]
    assert reached == {CLUSTER: 200.0, NODE: 220.0, POD_NAMES: 220.0, HOST_NAMES: 220.0}
    assert ready.note(reached)["parts"] == reached
    assert ready.note({})["parts"] == reached, "the first time stays"
    assert json.loads(ready.READY.read_text())["seconds_since_boot"] > 0


def test_a_machine_that_is_slow_to_answer_is_asked_less_often(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slept = [0.0], list[float]()
    cluster.readyz = (500, "")

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        cluster.readyz = (200, "ok") if len(slept) == 2 else cluster.readyz

    look = Watch.look

    def slow(watch: Watch) -> ready.Readiness:
        now[0] += 30 if not slept else 0
        return look(watch)

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(Watch, "look", slow)
    ready.wait(lambda _: None, 60)
    assert slept == [30.0, ready.POLL_SECONDS]


def test_who_waits_too_long_learns_how_far_it_came(cluster: Cluster) -> None:
    cluster.nodes = []
    with pytest.raises(Failure, match=r"(?s)not ready after 0 s.*node: it has not reported.*on: cluster \d+ s"):
        ready.wait(lambda _: None, 0)


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("8180000100010000", True),
        ("8183000100000000", False),  # no such name
        ("8182000100000000", False),  # the server failed
        ("8180000100000000", False),  # no address
        ("", False),
    ],
)
def test_name_server_is_asked(header: str, known: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            question, asker = server.recvfrom(512)
            assert question[12:] == b"\x01a\x02bc\0\0\x01\0\x01"
            server.sendto(question[:2] + bytes.fromhex(header), asker)

        thread = threading.Thread(target=serve)
        thread.start()
        assert ready.resolves("127.0.0.1", server.getsockname()[1], "a.bc") is known
        thread.join()


def test_name_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "PROBE_SECONDS", 0.2)
    assert not ready.resolves("127.0.0.1", 9, "a.bc")
