"""Names and ports of services: what is decided, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from dev_env.names import TCP_RANGE, desired, given_ports, host_of, http_port, ingress_of, tcp_ports
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
