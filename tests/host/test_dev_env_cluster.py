"""The guest's command with the real kubectl and helm, on the stand-in for k3s."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from dev_env import Failure, api, charts, files, names, ready, state, tools
from dev_env.api import Api, Refused
from dev_env.tools import ask, run

from tests.k3s_stand_in import NEWER, VERSION, build
from tests.tools import free_port, pinned_tools
from vmimage import PROJECT

SHARE = PROJECT / "provision/files/60-environment/usr/local/share/dev-env"


def kubectl_items(kinds: str, *, namespace: str = "", selector: str = "") -> list[dict[str, Any]]:
    """Return the objects of some kinds as the guest's kubectl lists them, of one namespace or of all."""
    where = ["--namespace", namespace] if namespace else ["--all-namespaces"]
    which = ["--selector", selector] if selector else []
    found: list[dict[str, Any]] = ask(["kubectl", "get", kinds, *where, *which, "--output=json"])["items"]
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a running stand-in: its kubeconfig, data and settings."""
    folder = tmp_path_factory.mktemp("cluster")
    port, http_port = free_port(), free_port()
    build(folder / "k3s")
    (folder / "config.yaml").write_text(
        f"write-kubeconfig: {folder}/k3s.yaml\nwrite-kubeconfig-mode: '0640'\nnode-name: dev-env\n"
        f"https-listen-port: '{port}'\ndata-dir: {folder}/data\nbind-address: 127.0.0.1\n"
    )
    command = ["python3", str(folder / "k3s"), "server", "--config", str(folder / "config.yaml")]
    options = {"STAND_IN_NETWORK": "none", "STAND_IN_HTTP_PORT": str(http_port)}
    with subprocess.Popen(command, env={**os.environ, **options}) as process:
        end = time.monotonic() + 30
        while not (folder / "k3s.yaml").exists() and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.1)
        yield folder
        process.terminate()


@pytest.fixture(autouse=True)
def environment(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (pinned_tools(tmp_path), cluster):
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    for module in (api, tools):
        monkeypatch.setattr(module, "KUBECONFIG", cluster / "k3s.yaml")
    monkeypatch.setattr(files, "READER", SHARE / "reader")
    monkeypatch.setattr(files, "PROFILES", SHARE / "profiles")
    monkeypatch.setattr(ready, "READY", tmp_path / "run" / "ready.json")


def up(*arguments: str) -> None:
    charts.up(files.merged([files.read(files.find(argument)) for argument in arguments]))
    names.reconcile(Api())


def test_cluster_is_ready_and_its_kubeconfig_is_for_its_group(cluster: Path) -> None:
    assert (cluster / "k3s.yaml").stat().st_mode & 0o777 == 0o640
    noted = ready.note(ready.wait(print, 60))
    assert list(noted["parts"]) == [ready.CLUSTER, ready.NODE, ready.POD_NAMES, ready.HOST_NAMES]
    assert noted["seconds_since_boot"] >= max(noted["parts"].values()) > 0
    assert state.status()[0].startswith("ready (after ")


def test_what_the_api_tells_of_another_boot_or_another_k3s_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / "bin"
    newer.mkdir()
    build(newer / "k3s", version=NEWER)
    monkeypatch.setenv("PATH", str(newer), prepend=os.pathsep)
    assert ready.Watch().look().waiting == f"node: it still runs {VERSION}"
    (tmp_path / "boot").write_text("another\n")
    monkeypatch.setattr(ready, "BOOT", tmp_path / "boot")
    assert ready.Watch().look().waiting == "node: it has not reported since the machine was switched on"
    with pytest.raises(Failure, match="waiting: node: it has not"):
        ready.wait(print, 0)


def test_ready_means_that_names_answer() -> None:
    (traefik,) = [
        each for each in kubectl_items("services", namespace="kube-system") if each["metadata"]["name"] == "traefik"
    ]
    (web,) = [port for port in traefik["spec"]["ports"] if port["name"] == "web"]
    closed = {"spec": {"ports": [{**web, "port": free_port()}, *traefik["spec"]["ports"][1:]]}}
    patch = ["kubectl", "patch", "service", "traefik", "--namespace=kube-system", "--type=merge", "--patch"]
    run([*patch, json.dumps(closed)])
    assert ready.Watch().look().waiting == f"{ready.HOST_NAMES}: Traefik does not answer yet"
    run([*patch, json.dumps({"spec": {"ports": traefik["spec"]["ports"]}})])
    assert ready.Watch().look().waiting == ""


def test_profiles_are_installed_replaced_and_removed(tmp_path: Path) -> None:
    up("hello")
    assert [release["name"] for release in charts.installed(ours=True)] == ["hello"]
    rows, _ = state.services()
    assert ["hello", "default", "http://hello.localhost:8080", "ready (1)"] in rows
    mine = tmp_path / "mine.yaml"
    mine.write_text("charts:\n  orders: {values: {replicas: 2}}\n  events: null\n")
    up("services", str(mine))
    assert [release["name"] for release in charts.installed(ours=True)] == ["orders"]
    (deployment,) = kubectl_items("deployments", namespace="backend")
    assert deployment["spec"]["replicas"] == 2
    assert charts.down([]) == ["orders"]
    assert charts.installed() == []


def test_up_that_was_cut_off_is_told_and_down_clears_it(tmp_path: Path) -> None:
    up("hello")
    # As helm leaves it when it is killed: the release is written down, and not as deployed.
    (secret,) = [each["metadata"]["name"] for each in kubectl_items("secrets") if each["type"] == "helm.sh/release.v1"]
    found = json.loads(run(["kubectl", "get", "secret", secret, "-o", "json"]))
    record = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(found["data"]["release"]))))
    record["info"]["status"] = "pending-install"
    text = base64.b64encode(gzip.compress(json.dumps(record).encode())).decode()
    changed = {"metadata": {"labels": {"status": "pending-install"}}, "stringData": {"release": text}}
    run(["kubectl", "patch", "secret", secret, "--patch", json.dumps(changed)])
    with pytest.raises(Failure, match="another operation") as refused:
        up("hello")
    assert "dev-env down hello" in refused.value.hint
    assert charts.down(["hello"]) == ["hello"]
    up("hello")
    charts.down([])


def test_what_others_installed_stays(tmp_path: Path) -> None:
    run(["helm", "install", "theirs", str(SHARE / "charts/hello"), "--wait"])
    up("hello")
    charts.down([])
    assert [release["name"] for release in charts.installed()] == ["theirs"]
    text, notes = charts.exported(None)
    assert "theirs" in text
    assert "not known" in notes[0]
    assert charts.down(["theirs"]) == ["theirs"]
    with pytest.raises(Failure, match="not installed: theirs"):
        charts.down(["theirs"])


def test_exported_file_brings_all_back_elsewhere(tmp_path: Path) -> None:
    chart = tmp_path / "mine"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: mine\nversion: 0.1.0\n")
    template = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: mine}\ndata: {word: {{ .Values.word | quote }}}\n"
    (chart / "templates/map.yaml").write_text(template)
    values = tmp_path / "values.yaml"
    values.write_text("charts:\n  mine:\n    chart: ./mine\n    values: {word: first}\n")
    up(str(values))
    run(["helm", "upgrade", "mine", str(chart), "--set", "word=second", f"--labels={charts.LABEL}=up"])
    packed = tmp_path / "export.charts"
    packed.mkdir()
    text, notes = charts.exported(packed)
    assert notes == []
    (tmp_path / "export.yaml").write_text(text)
    (release,) = files.merged([files.read(tmp_path / "export.yaml")])
    assert release.chart == str(packed / "mine-0.1.0.tgz")
    assert release.values == {"word": "second"}
    charts.down([])
    up(str(tmp_path / "export.yaml"))
    (found,) = [each for each in kubectl_items("configmaps", namespace="default") if each["metadata"]["name"] == "mine"]
    assert found["data"] == {"word": "second"}
    (packed / "mine-0.1.0.tgz").write_bytes(b"another")
    with pytest.raises(Failure, match="the chart is another than the file says"):
        up(str(tmp_path / "export.yaml"))
    charts.down([])


def test_chart_of_a_repository_is_installed_in_its_version_and_only_with_its_digest(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    run(["helm", "package", str(SHARE / "charts/hello"), "--destination", str(site)])
    run(["helm", "repo", "index", str(site)])
    values = tmp_path / "values.yaml"
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chart = {"chart": "hello", "repo": f"http://127.0.0.1:{server.server_port}", "version": "1.0.0"}
        digest = charts.digest_of(site / "hello-1.0.0.tgz")
        values.write_text(json.dumps({"charts": {"far": {**chart, "digest": digest}}}))
        up(str(values))
        text, notes = charts.exported(None)
        assert (digest in text, notes) == (True, [])
        values.write_text(json.dumps({"charts": {"far": {**chart, "digest": f"sha256:{'0' * 64}"}}}))
        with pytest.raises(Failure, match="the chart is another than the file says"):
            up(str(values))
        charts.down([])
        server.shutdown()


def test_names_and_ports_come_and_go_with_their_services() -> None:
    spec = {"selector": {"a": "b"}, "ports": [{"name": "http", "port": 80}, {"name": "db", "port": 5432}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop"}, "spec": spec}
    run(["kubectl", "create", "-f", "-"], stdin=json.dumps(service))
    assert names.reconcile(Api()) == ["Ingress default/shop-dev-env", "Service default/shop-dev-env"]
    assert names.reconcile(Api()) == [], "nothing is left to do"
    service["spec"] = {**spec, "ports": spec["ports"][:1]}  # type: ignore[index]
    run(["kubectl", "replace", "-f", "-"], stdin=json.dumps(service))
    assert names.reconcile(Api()) == ["removed Service default/shop-dev-env"]
    run(["kubectl", "delete", "service", "shop"])
    assert [each for each in kubectl_items("ingresses") if each["metadata"]["name"] == "shop-dev-env"] == []


def test_what_the_cluster_refuses_does_not_keep_others_from_their_names() -> None:
    # A port of the range that something else took, unseen by the listing.
    long = "a" * 63
    ports = [{"name": "http", "port": 80}, {"name": "db", "port": 5432}]
    for name in ("first", long):
        spec = {"selector": {"a": "b"}, "ports": ports}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
        run(["kubectl", "create", "-f", "-"], stdin=json.dumps(service))

    class Refusing(Api):
        def create(self, wanted: dict[str, Any]) -> None:
            if wanted["kind"] == "Service" and wanted["metadata"]["name"] == "first-dev-env":
                raise Refused("422 provided port is already allocated")
            super().create(wanted)

    with pytest.raises(Refused, match="already allocated"):
        names.reconcile(Refusing())
    made = [each["metadata"]["name"] for each in kubectl_items("ingresses,services", namespace="default")]
    assert sorted(name for name in made if name.endswith("-dev-env")) == [
        *[f"{'a' * 46}-{hashlib.sha256(long.encode()).hexdigest()[:8]}-dev-env"] * 2,
        "first-dev-env",
    ]
    run(["kubectl", "delete", "service", "first", long])


def test_chart_that_cannot_be_had_stops_before_anything_is_changed(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(f"charts:\n  a: {{chart: {SHARE}/charts/hello}}\n  b: {{chart: ./none}}\n")
    with pytest.raises(Failure, match="b: there is no chart"):
        up(str(values))
    assert charts.installed() == []


def test_watch_that_the_cluster_refuses_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(Api().changes("Service")) is None
    monkeypatch.setitem(api.PATHS, "Service", "/api/v1/{}nothing")
    with pytest.raises(Refused, match="404"):
        next(Api().changes("Service"))


def test_cluster_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (api, tools):
        monkeypatch.setattr(module, "KUBECONFIG", tmp_path / "none")
    assert ready.Watch().look().waiting == "cluster: it has not begun"
    assert state.status() == ["not ready yet: cluster: it has not begun"]
