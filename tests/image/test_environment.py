"""Component environment: ready when the machine is, charts without a network, names for services.

What needs containers that really run is skipped with the tests' stand-in for k3s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from testinfra.host import Host

SECONDS = 5.0
"""Within which a name appears with its service, and goes with it."""
SERVICE = "kubectl create service clusterip early --tcp=80:8080"
INGRESS = "kubectl get ingress early-dev-env --ignore-not-found -o name"


@pytest.fixture
def real(host: Host) -> None:
    """Containers run."""
    if "stand-in" in host.check_output("k3s --version"):
        pytest.skip("the stand-in for k3s runs no containers")


@pytest.fixture
def address(host: Host) -> str:
    """Where ports arrive that are forwarded to the machine."""
    links = json.loads(host.check_output("ip -json -4 address show scope global"))
    (found,) = [each["local"] for link in links for each in link["addr_info"] if each.get("dynamic")]
    return str(found)


def seconds_until(done: Callable[[], bool]) -> float:
    started = time.monotonic()
    while not done():
        assert time.monotonic() - started < 60
        time.sleep(0.2)
    return time.monotonic() - started


def test_ready_target_is_reached_and_the_console_told_when(
    root: Host, record_property: Callable[[str, object], None]
) -> None:
    assert root.check_output("systemctl is-active dev-env-ready.target") == "active"
    seconds = json.loads(root.file("/run/dev-env/ready.json").content_string)["seconds_since_boot"]
    record_property("seconds_to_ready", seconds)
    said = root.check_output("journalctl -b -u dev-env-ready -o cat")
    assert "dev-env is ready, " in said
    assert root.check_output("systemctl show -p StandardOutput --value dev-env-ready") == "journal+console"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("dev-env", "Runs your services in this machine"),
        ("dev-env status", "ready"),
        ("dev-env doctor", "ok  the cluster answers and is ready"),
        ("dev-env version", "v4.3.1"),
        ("dev-env profiles", "full-stack"),
        ("dev-env services", "ADDRESS ON YOUR COMPUTER"),
        ("dev-env share", "invoke share"),
        ("dev-env up --help", "A values file says which charts to run"),
    ],
)
def test_command(host: Host, command: str, said: str) -> None:
    assert said in host.check_output(command)


def test_dev_may_read_what_hints_point_to(host: Host) -> None:
    assert "k3s.service" in host.check_output("journalctl --quiet -b -u k3s -o json -n 1")


def test_wrong_input_is_told_without_a_traceback(host: Host) -> None:
    done = host.run("dev-env up no-such-profile")
    assert done.rc == 1
    assert "there is no file no-such-profile" in done.stderr
    assert "Traceback" not in done.stderr


def test_image_of_the_sample_is_there(host: Host) -> None:
    assert "localhost/hello:1" in host.check_output("dev-env images")


def test_sample_runs_without_a_network(host: Host) -> None:
    done = host.run("dev-env up hello")
    assert done.rc == 0, done.stderr
    assert "$ helm upgrade --install hello" in done.stderr
    assert "http://hello.localhost:8080" in done.stdout
    assert "https://hello.localhost:8443" in done.stdout


@pytest.mark.usefixtures("real")
def test_page_of_the_sample_by_name(host: Host, address: str) -> None:
    def answered() -> bool:
        return "Hello from your" in host.run(f"curl -s -H 'Host: hello.localhost' http://{address}/").stdout

    seconds_until(answered)
    secure = f"curl -sk --connect-to hello.localhost:8443:{address}:443 https://hello.localhost:8443/"
    assert "Hello from your" in host.check_output(secure)


def test_name_appears_with_its_service_and_goes_with_it(
    host: Host, record_property: Callable[[str, object], None]
) -> None:
    host.check_output(SERVICE)
    appeared = seconds_until(lambda: host.check_output(INGRESS) != "")
    host.check_output("kubectl delete service early")
    gone = seconds_until(lambda: host.check_output(INGRESS) == "")
    record_property("seconds_until_named", round(appeared, 1))
    assert max(appeared, gone) < SECONDS


def test_charts_own_ingress_keeps_its_name(host: Host) -> None:
    host.check_output("kubectl create ingress own --rule='early.localhost/*=other:80'")
    host.check_output(SERVICE)
    time.sleep(SECONDS)
    assert host.check_output(INGRESS) == ""
    host.check_output("kubectl delete ingress/own service/early")


def test_files_are_composed_and_what_is_not_wanted_any_more_goes(host: Host) -> None:
    override = '{"charts": {"orders": {"values": {"replicas": 2}}, "events": null}}'
    host.check_output("printf %s > /tmp/mine.yaml", override)
    done = host.run("dev-env up services /tmp/mine.yaml")
    assert done.rc == 0, done.stderr
    charts = {each["name"]: each for each in json.loads(host.check_output("helm list -A -o json"))}
    assert charts["orders"]["namespace"] == "backend"
    assert {"hello", "events"} & set(charts) == set()
    assert host.check_output("kubectl -n backend get deployment orders -o jsonpath='{.spec.replicas}'") == "2"


def test_plain_tcp_gets_a_port_of_the_range_and_export_brings_all_back(host: Host) -> None:
    done = host.run("dev-env up services")
    assert done.rc == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "(port 7000)" in line]
    port = int(line.split("localhost:")[1].split()[0])
    assert 31000 <= port <= 31019
    host.check_output("mkdir /tmp/first /tmp/second; dev-env export -o /tmp/first/all.yaml")
    assert "uninstalled" in host.check_output("dev-env down")
    assert host.check_output("dev-env export") == "charts: {}\n".strip()
    again = host.run("dev-env up /tmp/first/all.yaml")
    assert again.rc == 0, again.stderr
    assert line in again.stdout
    host.check_output("dev-env export -o /tmp/second/all.yaml")
    assert host.check_output("diff -r /tmp/first /tmp/second") == ""
    host.check_output("dev-env down")


@pytest.mark.usefixtures("real")
def test_plain_tcp_answers_at_its_port(host: Host, address: str) -> None:
    (line,) = [line for line in host.check_output("dev-env up services").splitlines() if "(port 7000)" in line]
    port = line.split("localhost:")[1].split()[0]
    seconds_until(lambda: host.run(f"echo hello | busybox timeout 5 busybox nc {address} {port}").stdout == "hello\n")
    host.check_output("dev-env down")


@pytest.mark.usefixtures("real")
def test_pods_find_services_and_the_machine_by_name(host: Host) -> None:
    ask = "kubectl run asks --quiet --image=localhost/hello:1 --restart=Never --rm -i -- busybox nslookup"
    found = host.check_output(f"{ask} kubernetes.default.svc.cluster.local").splitlines()
    assert [line for line in found if line.endswith(" 10.43.0.1")], found
    # Not the cluster's: systemd-resolved is asked, as for names of the internet.
    assert "127.0.0.1" in host.check_output(f"{ask} dev-env.localhost")


@pytest.mark.usefixtures("real")
def test_files_of_the_machine_are_served_live(host: Host, address: str) -> None:
    host.check_output("echo first > /home/dev/src/index.html; dev-env up frontend")
    page = f"curl -s -H 'Host: frontend.localhost' http://{address}/"
    seconds_until(lambda: host.run(page).stdout == "first\n")
    host.check_output("echo second > /home/dev/src/index.html")
    assert host.check_output(page) == "second"
    host.check_output("dev-env down")
