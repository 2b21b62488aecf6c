"""Releases of the guest's command with the real helm, on the stand-in for k3s: whose they are, and their record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dev_env import Failure, charts, files, names, record
from dev_env.api import Api, Refused
from dev_env.tools import run

from tests.host.test_dev_env_cluster import SHARE, cluster, environment, kubectl_items

__all__ = ["cluster", "environment"]  # fixtures


def chart(folder: Path, name: str, *maps: str, version: str = "0.1.0", template: str = "") -> Path:
    """Write a chart of ConfigMaps whose names do not depend on the release's."""
    (folder / name / "templates").mkdir(parents=True, exist_ok=True)
    (folder / name / "Chart.yaml").write_text(f"apiVersion: v2\nname: {name}\nversion: {version}\n")
    for each in maps:
        text = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {each}, namespace: default}}\n"
        (folder / name / "templates" / f"{each}.yaml").write_text(text)
    (folder / name / "templates" / "more.yaml").write_text(template)
    return folder / name


def up(folder: Path, wanted: dict[str, Any], **options: Any) -> None:
    path = folder / "values.yaml"
    path.write_text(json.dumps({"charts": wanted}))
    charts.up(files.merged([files.read(path)]), **options)


def running() -> set[tuple[str, str]]:
    return {record.key_of(each) for each in charts.installed()}


@pytest.fixture(autouse=True)
def empty(environment: None) -> Iterator[None]:
    """Leave the cluster as it was."""
    yield
    for each in charts.installed():
        run(["helm", "uninstall", each["name"], "--namespace", each["namespace"]])
    run(["kubectl", "delete", "configmap", "dev-env", "--namespace=kube-system", "--ignore-not-found"])


def test_release_that_is_renamed_or_moved_gives_its_objects_to_the_new_one(tmp_path: Path) -> None:
    made = str(chart(tmp_path, "shop", "shop-settings"))
    up(tmp_path, {"shop": {"chart": made}})
    up(tmp_path, {"store": {"chart": made}})
    assert running() == {("default", "store")}
    up(tmp_path, {"store": {"chart": made, "namespace": "moved"}})
    assert running() == {("moved", "store")}
    assert [
        each for each in kubectl_items("configmaps", namespace="default") if each["metadata"]["name"] == "shop-settings"
    ]
    assert set(record.read()) == {("moved", "store")}


def test_object_of_a_release_that_stays_is_told_before_anything_is_changed(tmp_path: Path) -> None:
    first, second = (str(chart(tmp_path, name, "shop-settings")) for name in ("first", "second"))
    free = str(chart(tmp_path, "free", "free-settings"))
    up(tmp_path, {"first": {"chart": first}})
    wanted = {"free": {"chart": free}, "first": {"chart": first}, "second": {"chart": second, "namespace": "b"}}
    with pytest.raises(
        Failure, match=r"second: its ConfigMap default/shop-settings belongs to .* default/first"
    ) as told:
        up(tmp_path, wanted)
    assert "`dev-env down default/first`" in told.value.hint
    assert running() == {("default", "first")}
    charts.down(["default/first"])
    # Both are new: helm finds out, and its reason is told with the way out.
    with pytest.raises(Failure, match="could not be installed") as told:
        up(tmp_path, wanted)
    assert "`dev-env down default/first`" in told.value.hint
    assert set(record.read()) >= {("default", "free"), ("default", "first")}


def test_what_helm_installed_is_taken_over_only_by_force(tmp_path: Path) -> None:
    made = str(chart(tmp_path, "web", "web-settings"))
    run(["helm", "install", "web", made])
    with pytest.raises(Failure, match="installed by helm, not by `dev-env up`: default/web") as told:
        up(tmp_path, {"a": {"chart": str(chart(tmp_path, "a", "a-settings"))}, "web": {"chart": made}})
    assert "--force" in told.value.hint
    assert running() == {("default", "web")}
    assert charts.installed(ours=True) == []
    # One of that name in another namespace is another release.
    up(tmp_path, {"web": {"chart": str(chart(tmp_path, "web2", "web2-settings")), "namespace": "b"}})
    assert charts.down([]) == ["web"]
    assert running() == {("default", "web")}
    up(tmp_path, {"web": {"chart": made}}, force=True)
    # What is installed by helm in the place of ours is not ours, whatever is noted.
    run(["helm", "uninstall", "web"])
    run(["helm", "install", "web", made])
    _, notes = charts.exported(None)
    assert notes == ["web: not installed by `dev-env up`, so where web-0.1.0 is from is not known"]


def test_one_name_in_two_namespaces_is_exported_twice_and_taken_down_by_its_namespace(tmp_path: Path) -> None:
    ours, theirs = (str(chart(tmp_path, name, f"{name}-settings")) for name in ("ours", "theirs"))
    run(["helm", "install", "web", theirs, "--namespace=a", "--create-namespace", "--set=who=theirs"])
    up(tmp_path, {"web": {"chart": ours, "namespace": "b", "values": {"who": "ours"}}})
    run(["helm", "install", "web-a", theirs, "--namespace=c", "--create-namespace", "--set=who=third", "--no-hooks",
         "--set=x=1", "--take-ownership"])  # fmt: skip
    text, notes = charts.exported(None)
    found = yaml.safe_load(text)["charts"]
    assert {name: (each["namespace"], each["values"]["who"]) for name, each in found.items()} == {
        "web": ("b", "ours"),
        "web-a": ("c", "third"),
        "web-a-2": ("a", "theirs"),
    }
    assert found["web"]["chart"] == ours
    assert any("web of the namespace a is called web-a-2 in this file" in note for note in notes)
    with pytest.raises(Failure, match="web is installed 2 times") as told:
        charts.down(["web"])
    assert "`dev-env down a/web`" in told.value.hint
    assert charts.down(["b/web"]) == ["web"]
    assert running() == {("a", "web"), ("c", "web-a")}
    with pytest.raises(Failure, match="not installed: b/web"):
        charts.down(["b/web"])


def test_two_charts_of_one_name_and_version_are_both_packed(tmp_path: Path) -> None:
    one, two = chart(tmp_path / "x", "same", "one"), chart(tmp_path / "y", "same", "two")
    up(tmp_path, {"one": {"chart": str(one)}, "two": {"chart": str(two)}, "again": {"chart": str(chart(
        tmp_path / "z", "plain", template=""))}})  # fmt: skip
    folder = tmp_path / "team.charts"
    folder.mkdir()
    text, _ = charts.exported(folder)
    (tmp_path / "team.yaml").write_text(text)
    charts.down([])
    charts.up(files.merged([files.read(tmp_path / "team.yaml")]))
    there = {each["metadata"]["name"] for each in kubectl_items("configmaps", namespace="default")}
    assert {"one", "two"} <= there
    assert sorted(path.name for path in folder.iterdir()) == ["plain-0.1.0.tgz", "same-0.1.0.tgz", "two-same-0.1.0.tgz"]


def test_each_chart_is_recorded_when_it_is_installed(tmp_path: Path) -> None:
    good, bad = chart(tmp_path, "good", "good-settings"), chart(tmp_path, "bad", template='{{ fail "it" }}')
    with pytest.raises(Failure, match="no could not be installed"):
        up(tmp_path, {"good": {"chart": str(good), "values": {"large": "x"}}, "no": {"chart": str(bad)}})
    assert {key: each.chart for key, each in record.read().items()} == {("default", "good"): str(good)}
    text, notes = charts.exported(None)
    assert yaml.safe_load(text)["charts"]["good"]["chart"] == str(good)
    assert not [note for note in notes if "not known" in note]


def test_record_of_an_older_one_is_read_and_another_ones_is_left_alone(tmp_path: Path) -> None:
    made = str(chart(tmp_path, "shop", "shop-settings"))
    old = json.dumps({"shop": {"chart": made}, "web": {"chart": "oci://r.invalid/web", "namespace": "a", "values": {}}})
    create = ["kubectl", "create", "configmap", "dev-env", "--namespace=kube-system", "--from-literal"]
    run([*create, f"charts={old}"])
    assert set(record.read()) == {("default", "shop"), ("a", "web")}
    run(["kubectl", "delete", "configmap", "dev-env", "--namespace=kube-system"])
    for theirs in ("settings=mine", "charts=mine", "charts=[]", 'charts={"a": 1}'):
        run([*create, theirs])
        for act in (lambda: up(tmp_path, {"shop": {"chart": made}}), lambda: charts.down([]),
                    lambda: charts.exported(None)):  # fmt: skip
            with pytest.raises(Failure, match="kube-system/dev-env is not what"):
                act()
        (found,) = [each for each in kubectl_items("configmaps", namespace="kube-system")
                    if each["metadata"]["name"] == "dev-env"]  # fmt: skip
        assert "=".join(*found["data"].items()) == theirs
        assert running() == set()
        run(["kubectl", "delete", "configmap", "dev-env", "--namespace=kube-system"])


def test_helm_that_says_a_lot_or_hangs_does_not_hold_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    real = Path(run(["sh", "-c", "command -v helm"]).strip())
    (folder / "helm").write_text(
        f'#!/bin/sh\n[ "$1" = upgrade ] || exec {real} "$@"\nyes noise | head -c 3000000\n'
        'yes noise | head -c 3000000 >&2\nexec sleep "${HANGS:-0}"\n'
    )
    (folder / "helm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    made = str(chart(tmp_path, "shop", "shop-settings"))
    up(tmp_path, {"shop": {"chart": made}})
    monkeypatch.setenv("HANGS", "60")
    monkeypatch.setattr(charts, "HELM_MORE_SECONDS", 1)
    with pytest.raises(Failure, match="helm upgrade --install … did not end within 2 s"):
        up(tmp_path, {"shop": {"chart": made}}, seconds=1)


def test_api_creates_changes_and_removes_only_what_it_saw() -> None:
    api = Api()
    spec = {"selector": {"a": "b"}, "ports": [{"name": "db", "port": 5432, "protocol": "TCP", "targetPort": 5432}]}
    meta = {"name": "seen", "namespace": "default"}
    made = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
    api.create(made)
    with pytest.raises(Refused, match="409"):
        api.create(made)
    (seen,) = [each for each in api.items("Service", "default") if each["metadata"]["name"] == "seen"]
    run(["kubectl", "label", "service", "seen", "theirs=yes"])
    for act in (api.replace, api.delete):
        with pytest.raises(Refused, match="409"):
            act(seen)
    (seen,) = [each for each in api.items("Service", "default") if each["metadata"]["name"] == "seen"]
    assert seen["metadata"]["labels"] == {"theirs": "yes"}
    api.replace({**seen, "metadata": {**seen["metadata"], "labels": {"theirs": "no"}}})
    (seen,) = [each for each in api.items("Service", "default") if each["metadata"]["name"] == "seen"]
    api.delete(seen)
    api.delete(seen)  # it is gone


def test_service_whose_name_ours_would_take_keeps_its_ports(tmp_path: Path) -> None:
    for name, port in (("shop", 3306), ("shop-dev-env", 3307)):
        spec = {"selector": {"app": name}, "ports": [{"name": "mysql", "port": port}]}
        found = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
        run(["kubectl", "create", "-f", "-"], stdin=json.dumps(found))
    names.reconcile(Api())
    run(["kubectl", "delete", "service", "shop"])
    names.reconcile(Api())
    left = {each["metadata"]["name"]: each for each in kubectl_items("services", namespace="default")}
    assert set(left) == {"kubernetes", "shop-dev-env", "shop-dev-env-dev-env"}
    assert left["shop-dev-env"]["spec"]["selector"] == {"app": "shop-dev-env"}
    assert left["shop-dev-env"]["spec"]["ports"][0]["port"] == 3307
    run(["kubectl", "delete", "service", "shop-dev-env"])


def test_up_that_is_killed_between_two_charts_remembers_the_first(tmp_path: Path, cluster: Path) -> None:
    good = chart(tmp_path, "good", "good-settings")
    pod = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: never}\nspec: {containers: [{name: a, image: 'x.invalid/n:1'}]}\n"
    )
    never = chart(tmp_path, "never", template=pod)
    (tmp_path / "both.yaml").write_text(f"charts:\n  good: {{chart: {good}}}\n  never: {{chart: {never}}}\n")
    program = (
        f"import sys; sys.path.insert(0, {str(Path(charts.__file__).parents[1])!r})\n"
        "from pathlib import Path\nfrom dev_env import api, cli, files, tools\n"
        f"api.KUBECONFIG = tools.KUBECONFIG = Path({str(cluster / 'k3s.yaml')!r})\n"
        f"files.READER = Path({str(SHARE / 'reader')!r})\n"
        f"sys.exit(cli.main(['up', {str(tmp_path / 'both.yaml')!r}]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("$ helm upgrade --install never"):
                process.send_signal(signal.SIGKILL)
    assert set(record.read()) == {("default", "good")}
