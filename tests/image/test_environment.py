"""Component environment: ready when the machine is, charts without a network, names for services."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from testinfra.host import Host

from .conftest import Context, seconds_until

SERVICE = "kubectl create service clusterip early --tcp=80:8080"
INGRESS = "kubectl get ingress early-dev-env --ignore-not-found -o name"


def test_ready_target_is_reached_and_the_console_told_when(
    root: Host, record_property: Callable[[str, object], None]
) -> None:
    assert root.check_output("systemctl is-active dev-env-ready.target") == "active"
    noted = json.loads(root.file("/run/dev-env/ready.json").content_string)
    record_property("seconds_to_ready", noted["seconds_since_boot"])
    for part, seconds in noted["parts"].items():
        record_property(f"seconds_to_{part.replace(' ', '_')}", seconds)
    assert list(noted["parts"]) == ["cluster", "node", "names in pods", "names on your computer"]
    lines = root.check_output("journalctl -b -u dev-env-ready -o cat").splitlines()
    (said,) = [line for line in lines if line.startswith("dev-env is ready, ")]
    assert all(f"{part} {seconds:.0f} s" in said for part, seconds in noted["parts"].items())
    # The console is for people.
    waiting = [line for line in lines if line.startswith("waiting for ")]
    assert [line for line in waiting if not line.endswith(" s so far)") or len(line) > 120] == []
    assert not [line for line in lines if "poststarthook" in line]
    assert root.check_output("systemctl show -p StandardOutput --value dev-env-ready") == "journal+console"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("dev-env", "Runs your services in this machine"),
        ("dev-env status", "ready"),
        ("dev-env doctor", "ok  the cluster answers and is ready"),
        ("dev-env profiles", "full-stack"),
        ("dev-env services", "ADDRESS ON YOUR COMPUTER"),
        ("dev-env share", "invoke share"),
        ("dev-env up --help", "A values file says which charts to run"),
    ],
)
def test_command(host: Host, command: str, said: str) -> None:
    assert said in host.check_output(command)


def test_versions_are_those_of_the_pins(host: Host, context: Context) -> None:
    said = host.check_output("dev-env version")
    assert [pin for pin in ("k3s", "kubectl", "helm") if context.version(pin) not in said] == []


def test_update_that_was_cut_off_is_mended_before_k3s_starts_and_when_it_is_killed(root: Host) -> None:
    assert "dev-env-recover.service" in root.check_output("systemctl show -p Requires --value k3s").split()
    assert "dev-env-recover.service" in root.check_output("systemctl show -p After --value k3s").split()
    assert root.check_output("systemctl is-active dev-env-recover-killed.path") == "active"
    assert root.run("test -e /var/lib/dev-env/update.json").rc == 1
    assert "no update was cut off" in root.check_output("dev-env recover 2>&1")


def test_dev_may_read_what_hints_point_to(host: Host) -> None:
    assert "k3s.service" in host.check_output("journalctl --quiet -b -u k3s -o json -n 1")


def test_wrong_input_is_told_without_a_traceback(host: Host) -> None:
    done = host.run("dev-env up no-such-profile")
    assert done.rc == 1
    assert "there is no file no-such-profile" in done.stderr
    assert "Traceback" not in done.stderr


def test_image_of_the_sample_is_there(host: Host) -> None:
    assert "localhost/hello:1" in host.check_output("dev-env images")


def test_machine_knows_the_ports_that_lead_to_it(host: Host, context: Context) -> None:
    """The console says them when it is ready; what they are is told anew at each start."""
    assert host.check_output("systemctl is-active dev-env-forwards") == "active"
    told = context.forwards
    text = (
        f"{told['22']} ssh, {told['80']} http, {told['443']} https, {told['6443']} Kubernetes, 20 of 20 for other TCP"
    )
    assert f"ports on your computer: {text}" in host.check_output("dev-env status").splitlines()
    assert f"ports on your computer: {text}" in host.check_output("journalctl -b -u dev-env-ready -o cat").splitlines()
    assert host.run("dev-env services").stderr.count("usual ports") == 0
    assert f"--ssh-port {told['22']}" in host.check_output("dev-env share")


def test_sample_runs_without_a_network(host: Host, context: Context) -> None:
    done = host.run("dev-env up hello")
    assert done.rc == 0, done.stderr
    assert "$ helm upgrade --install hello" in done.stderr
    assert f"http://hello.localhost:{context.forwards['80']}" in done.stdout
    assert f"https://hello.localhost:{context.forwards['443']}" in done.stdout


def test_page_of_the_sample_by_name(host: Host, address: str) -> None:
    def answered() -> bool:
        return "Hello from your" in host.run(f"curl -s -H 'Host: hello.localhost' http://{address}/").stdout

    seconds_until(answered)


@pytest.mark.usefixtures("real")
def test_page_of_the_sample_by_https(host: Host, address: str) -> None:
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
    record_property("seconds_until_unnamed", round(gone, 1))


def test_charts_own_ingress_keeps_its_name(host: Host) -> None:
    host.check_output("kubectl create ingress own --rule='early.localhost/*=other:80'")
    host.check_output(SERVICE)
    # One that is named later shows that this one had its turn.
    host.check_output("kubectl create service clusterip later --tcp=80:8080")
    seconds_until(lambda: host.check_output("kubectl get ingress later-dev-env --ignore-not-found -o name") != "")
    assert host.check_output(INGRESS) == ""
    host.check_output("kubectl delete ingress/own service/early service/later")


@pytest.mark.usefixtures("real")
def test_pods_find_services_and_the_machine_by_name(host: Host) -> None:
    ask = "kubectl run asks --quiet --image=localhost/hello:1 --restart=Never --rm -i -- busybox nslookup"
    found = host.check_output(f"{ask} kubernetes.default.svc.cluster.local").splitlines()
    assert [line for line in found if line.endswith(" 10.43.0.1")], found
    # Not the cluster's: systemd-resolved is asked, as for names of the internet.
    assert "127.0.0.1" in host.check_output(f"{ask} dev-env.localhost")
