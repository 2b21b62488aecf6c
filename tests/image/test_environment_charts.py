"""Component environment: values files that run many charts at once, and what becomes of their ports and files.

The tests run in the order of this file: what one leaves in the cluster, the next one finds.
"""

from __future__ import annotations

import json

from testinfra.host import Host

from .conftest import seconds_until


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


def test_plain_tcp_answers_at_its_port(host: Host, address: str) -> None:
    (line,) = [line for line in host.check_output("dev-env services").splitlines() if "(port 7000)" in line]
    port = line.split("localhost:")[1].split()[0]
    seconds_until(lambda: host.run(f"echo hello | busybox timeout 5 busybox nc {address} {port}").stdout == "hello\n")


def test_files_are_composed_and_what_is_not_wanted_any_more_goes(host: Host) -> None:
    assert "events" in host.check_output("helm list -A -q").split(), "left by the test before"
    override = '{"charts": {"orders": {"values": {"replicas": 2}}, "events": null}}'
    host.check_output("printf %s > /tmp/mine.yaml", override)
    done = host.run("dev-env up services /tmp/mine.yaml")
    assert done.rc == 0, done.stderr
    charts = {each["name"]: each for each in json.loads(host.check_output("helm list -A -o json"))}
    assert charts["orders"]["namespace"] == "backend"
    assert "events" not in charts
    assert host.check_output("kubectl -n backend get deployment orders -o jsonpath='{.spec.replicas}'") == "2"
    host.check_output("dev-env down")


def test_files_of_the_machine_are_served_live(host: Host, address: str) -> None:
    host.check_output("echo first > /home/dev/src/index.html; dev-env up frontend")
    page = f"curl -s -H 'Host: frontend.localhost' http://{address}/"
    seconds_until(lambda: host.run(page).stdout == "first\n")
    host.check_output("echo second > /home/dev/src/index.html")
    assert host.check_output(page) == "second"
    host.check_output("dev-env down")


def test_directory_that_is_mounted_after_up_is_served_and_closed_to_its_pod(host: Host, address: str) -> None:
    host.check_output("echo below > /home/dev/src/index.html; dev-env up frontend")

    def page() -> str:
        return str(host.run(f"curl -s -H 'Host: frontend.localhost' http://{address}/").stdout)

    seconds_until(lambda: page() == "below\n", what=page)
    host.check_output("sudo mount -t tmpfs -o uid=1000,gid=1000,mode=755 none /home/dev/src")
    try:
        host.check_output("echo above > /home/dev/src/index.html")
        seconds_until(lambda: page() == "above\n", what=page)
        # `readOnly` of the chart does not reach what is mounted later: the pod's user may not write there.
        server = host.check_output("pgrep --full --oldest 'nc -ll -p 8080'")
        inside = f"sudo nsenter --target {server} --mount --root --setuid 65532 --setgid 65532 /bin/busybox"
        assert host.run(f"{inside} test -e /www/index.html").rc == 0
        denied = host.run(f"{inside} touch /www/written")
        assert denied.rc != 0
        assert "Permission denied" in denied.stderr
    finally:
        host.check_output("sudo umount --lazy /home/dev/src")
    seconds_until(lambda: page() == "below\n", what=page)
    host.check_output("dev-env down")
