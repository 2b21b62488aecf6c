"""Names and ports of services: what is decided, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from dev_env.api import Refused
from dev_env.names import (
    TCP_RANGE,
    desired,
    given_ports,
    host_of,
    http_port,
    ingress_of,
    is_ours,
    names_for,
    reconcile,
    tcp_ports,
)
from hypothesis import given
from hypothesis import strategies as st

from vmimage import PROJECT
from vmimage.spec.load import load_spec
from vmimage.spec.model import port_range


def service(name: str = "web", namespace: str = "default", **options: Any) -> dict[str, Any]:
    ports = options.pop("ports", [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}])
    meta = {"name": name, "namespace": namespace, "uid": f"uid-{name}", **options.pop("meta", {})}
    spec = {"type": "ClusterIP", "selector": {"app": name}, "ports": ports, **options}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def tcp(port: int, name: str = "db") -> dict[str, Any]:
    return {"name": name, "port": port, "protocol": "TCP"}


def test_names_of_the_default_namespace_are_short() -> None:
    assert host_of(service()) == "web.localhost"
    assert host_of(service(namespace="backend")) == "web.backend.localhost"


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([tcp(5432)], None),
        ([tcp(5432), tcp(9000, "http")], 9000),
        ([tcp(5432), tcp(9000, "web")], 9000),
        ([tcp(9000, "http-api")], 9000),
        ([tcp(8080, "")], 8080),
        ([{**tcp(7000), "appProtocol": "http"}, tcp(80)], 7000),
        ([{**tcp(80), "appProtocol": "kubernetes.io/h2c"}], None),
        ([{**tcp(80), "protocol": "UDP"}], None),
        ([tcp(80), tcp(9000, "http")], 9000),
    ],
)
def test_port_that_speaks_http(ports: list[dict[str, Any]], expected: int | None) -> None:
    found = http_port(service(ports=ports))
    assert (found["port"] if found else None) == expected


def test_ingress_leads_to_the_service_by_http_and_https_and_goes_with_it() -> None:
    (made,) = desired([service()], [])
    assert made["kind"] == "Ingress"
    assert made["spec"]["rules"][0]["host"] == "web.localhost"
    backend = made["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "web", "port": {"number": 80}}
    assert made["metadata"]["annotations"]["traefik.ingress.kubernetes.io/router.entrypoints"] == "web,websecure"
    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-web"


@pytest.mark.parametrize(
    "left_alone",
    [
        service(namespace="kube-system"),
        service("kubernetes"),
        service(type="ExternalName"),
        service(meta={"annotations": {"dev-env/names": "off"}}),
        service(meta={"labels": {"app.kubernetes.io/managed-by": "dev-env"}}),
        service(meta={"deletionTimestamp": "now"}),
    ],
)
def test_some_services_are_left_alone(left_alone: dict[str, Any]) -> None:
    assert desired([left_alone], []) == []


def test_host_of_a_charts_own_ingress_is_left_to_it() -> None:
    own = {"metadata": {"name": "x", "labels": {}}, "spec": {"rules": [{"host": "web.localhost"}]}}
    assert desired([service()], [own]) == []
    ours = ingress_of(service(), service()["spec"]["ports"][0])
    assert desired([service()], [ours]) == [ours]


def test_other_tcp_ports_get_a_number_that_stays() -> None:
    database = service("db", ports=[tcp(5432)])
    (made,) = desired([database], [])
    number = made["spec"]["ports"][0]["nodePort"]
    assert number in TCP_RANGE
    assert made["spec"]["selector"] == {"app": "db"}
    # What was given stays, although another number would be chosen now.
    other = next(each for each in TCP_RANGE if each != number)
    made["spec"]["ports"][0]["nodePort"] = other
    assert given_ports([made]) == {("default", "db", 5432): other}
    (again,) = desired([database, made], [])
    assert again["spec"]["ports"][0]["nodePort"] == other


def test_http_and_tcp_of_one_service_get_one_each() -> None:
    both = service(ports=[tcp(80, "http"), tcp(7000, "echo")])
    assert [made["kind"] for made in desired([both], [])] == ["Ingress", "Service"]
    assert [port["port"] for port in tcp_ports(both)] == [7000]


def test_service_without_pods_of_its_own_gets_no_number() -> None:
    assert desired([service(ports=[tcp(5432)], selector=None)], []) == []


@given(names=st.sets(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, max_size=30))
def test_no_number_is_given_twice_and_more_than_there_are_is_no_error(names: set[str]) -> None:
    made = desired([service(name, ports=[tcp(5432)]) for name in names], [])
    numbers = [port["nodePort"] for each in made for port in each["spec"]["ports"]]
    assert len(set(numbers)) == len(numbers) == min(len(names), len(TCP_RANGE))


def test_the_ports_of_the_range_are_those_that_the_machine_forwards() -> None:
    _, image = load_spec(PROJECT / "images.yaml").image("dev-env")
    assert port_range(image.machine.ports) == TCP_RANGE


class Cluster:
    """Keeps objects, and refuses what a cluster refuses: what is there by now, or is another by now."""

    def __init__(self, *objects: dict[str, Any]) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.asked: list[str] = []
        self.count = 0
        for each in objects:
            self._put(each)

    def _put(self, found: dict[str, Any]) -> None:
        self.count += 1
        meta = {"uid": f"uid-{self.count}", **found["metadata"], "resourceVersion": str(self.count)}
        self.objects[found["kind"], meta["namespace"], meta["name"]] = {**found, "metadata": meta}

    def _same(self, found: dict[str, Any]) -> None:
        key = found["kind"], found["metadata"]["namespace"], found["metadata"]["name"]
        there = self.objects.get(key)
        if there and there["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            raise Refused("409 the object has been modified")

    def items(self, kind: str, _namespace: str = "") -> list[dict[str, Any]]:
        return [each for key, each in self.objects.items() if key[0] == kind]

    def create(self, wanted: dict[str, Any]) -> None:
        key = wanted["kind"], wanted["metadata"]["namespace"], wanted["metadata"]["name"]
        self.asked.append(f"create {'/'.join(key)}")
        if key in self.objects:
            raise Refused("409 already exists")
        self._put(wanted)

    def replace(self, wanted: dict[str, Any]) -> None:
        self.asked.append(f"replace {wanted['metadata']['name']}")
        self._same(wanted)
        self._put(wanted)

    def delete(self, found: dict[str, Any]) -> None:
        self.asked.append(f"delete {found['metadata']['name']}")
        self._same(found)
        self.objects.pop((found["kind"], found["metadata"]["namespace"], found["metadata"]["name"]), None)


def ours(name: str = "shop", namespace: str = "default") -> dict[str, Any]:
    """Return the NodePort that we make for a service."""
    (made,) = desired([service(name, namespace, ports=[tcp(3306)])], [])
    return made


OUR_LABEL = {"app.kubernetes.io/managed-by": "dev-env"}


def test_name_that_is_taken_is_left_and_another_one_used(capsys: pytest.CaptureFixture[str]) -> None:
    shop = service("shop", ports=[tcp(3306), tcp(80, "http")])
    theirs = service("shop-dev-env", ports=[tcp(3307)], meta={"labels": {"app.kubernetes.io/managed-by": "Helm"}})
    ingress = {"kind": "Ingress", "metadata": {"name": "shop-dev-env", "namespace": "default"}, "spec": {}}
    cluster = Cluster(shop, theirs, ingress)
    before = {key: each for key, each in cluster.objects.items() if key[2] == "shop-dev-env"}
    reconcile(cluster)  # type: ignore[arg-type]
    assert {key: cluster.objects[key] for key in before} == before
    other = names_for("shop")[1]
    assert ("Service", "default", other) in cluster.objects
    assert ("Ingress", "default", other) in cluster.objects
    # The service of that name has names and ports of its own, as any other.
    assert ("Service", "default", "shop-dev-env-dev-env") in cluster.objects
    assert reconcile(cluster) == []  # type: ignore[arg-type]
    # When the name is free again, ours moves there; nothing of the other's went.
    del cluster.objects["Service", "default", "shop-dev-env"]
    reconcile(cluster)  # type: ignore[arg-type]
    assert ("Service", "default", "shop-dev-env") in cluster.objects
    assert ("Service", "default", other) not in cluster.objects


def test_both_names_taken_is_a_line_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    taken = [service(name, ports=[], selector=None) for name in names_for("shop")]
    cluster = Cluster(service("shop", ports=[tcp(3306)]), *taken)
    assert reconcile(cluster) == []  # type: ignore[arg-type]
    assert "default/shop: no Service is made for it: shop-dev-env, shop-" in capsys.readouterr().err
    assert cluster.asked == []


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {}},  # its user took the label away
        {"labels": None},
        {"labels": {"app.kubernetes.io/managed-by": "Helm"}},
        {"ownerReferences": []},  # a copy of ours that somebody made
        {"ownerReferences": [{"kind": "Deployment", "name": "shop", "uid": "1"}]},
        {"ownerReferences": [{"kind": "Service", "name": "other", "uid": "1"}]},
        {"name": "my-shop"},
        {"namespace": "kube-system"},
    ],
)
def test_what_is_not_quite_ours_is_neither_changed_nor_removed(change: dict[str, Any]) -> None:
    made = ours()
    made["metadata"].update(change)
    assert not is_ours(made)
    cluster = Cluster(made)
    reconcile(cluster)  # type: ignore[arg-type]
    assert not [each for each in cluster.asked if not each.startswith("create")]
    # Also not when the service is there that ours belongs to.
    cluster = Cluster(made, service("shop", ports=[tcp(3306)]))
    reconcile(cluster)  # type: ignore[arg-type]
    assert not [each for each in cluster.asked if not each.startswith("create")]


def test_services_of_one_name_in_two_namespaces_have_objects_of_their_own() -> None:
    theirs = service("shop-dev-env", "b", ports=[])
    cluster = Cluster(service("shop", ports=[tcp(1)]), service("shop", "b", ports=[tcp(1)]), theirs)
    reconcile(cluster)  # type: ignore[arg-type]
    assert ("Service", "default", "shop-dev-env") in cluster.objects, "taken in the other namespace only"
    assert ("Service", "b", names_for("shop")[1]) in cluster.objects
    numbers = given_ports(cluster.items("Service"))
    assert numbers["default", "shop", 1] != numbers["b", "shop", 1]
    del cluster.objects["Service", "b", "shop"]
    assert reconcile(cluster) == [f"removed Service b/{names_for('shop')[1]}"]  # type: ignore[arg-type]


def test_object_that_somebody_made_in_the_meantime_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    cluster = Cluster(service("shop", ports=[tcp(3306)]))
    create, theirs = cluster.create, service("shop-dev-env", ports=[])

    def first(wanted: dict[str, Any]) -> None:
        cluster.create = create  # type: ignore[method-assign]
        cluster._put(theirs)
        create(wanted)

    cluster.create = first  # type: ignore[method-assign]
    assert reconcile(cluster) == [f"Service default/{names_for('shop')[1]}"]  # type: ignore[arg-type]
    assert cluster.objects["Service", "default", "shop-dev-env"]["spec"] == theirs["spec"]


def test_object_whose_label_was_taken_in_the_meantime_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    cluster = Cluster(ours())
    delete = cluster.delete

    def first(found: dict[str, Any]) -> None:
        cluster._put({**found, "metadata": {**found["metadata"], "labels": {}}})
        delete(found)

    monkeypatch.setattr(cluster, "delete", first)
    assert reconcile(cluster) == []  # type: ignore[arg-type]
    assert ("Service", "default", "shop-dev-env") in cluster.objects


def test_what_others_set_on_ours_stays_when_it_changes() -> None:
    made = ours()
    made["metadata"]["annotations"] = {"theirs": "x"}
    made["spec"]["clusterIP"] = "10.43.0.9"
    cluster = Cluster(made, service("shop", ports=[tcp(3306), tcp(3307, "more")]))
    reconcile(cluster)  # type: ignore[arg-type]
    found = cluster.objects["Service", "default", "shop-dev-env"]
    assert [port["port"] for port in found["spec"]["ports"]] == [3306, 3307]
    assert (found["metadata"]["annotations"], found["spec"]["clusterIP"]) == ({"theirs": "x"}, "10.43.0.9")
    assert cluster.asked == ["replace shop-dev-env"]


def test_service_that_has_a_number_of_the_range_itself_needs_no_other() -> None:
    db = service("db", type="NodePort", ports=[{**tcp(5432), "nodePort": TCP_RANGE[3]}])
    assert desired([db], []) == []
    assert given_ports([db]) == {("default", "db", 5432): TCP_RANGE[3]}


def test_null_where_a_list_or_a_mapping_could_be_is_no_error() -> None:
    bare = service(ports=None, meta={"labels": None, "annotations": None, "ownerReferences": None})
    ingress = {"kind": "Ingress", "metadata": {"name": "x", "namespace": "a", "labels": None}, "spec": {"rules": None}}
    assert desired([bare], [ingress]) == []


def test_neighbours_of_the_machine_reach_the_ports_that_services_get() -> None:
    ports = f"{TCP_RANGE[0]}-{TCP_RANGE[-1]}"
    rules = (PROJECT / "provision/files/50-k3s/etc/rancher/k3s/neighbours.nft").read_text()
    assert f" {ports} }} accept" in rules
    assert load_spec(PROJECT / "images.yaml").images["dev-env"].machine.ports == ports
