"""The pure parts of `invoke bench build`: figures, floor, and what the peer is given."""

from __future__ import annotations

import json
import re
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import requests
import yaml

from bench import floor, peer, relay
from bench.build import OTHER, replaced, with_other_pin
from bench.figures import COLD, COMPONENT, LAST_STEP, NO_CHANGE, Ours, Round, read_build, report, table
from vmimage import PROJECT
from vmimage.disk.raw import allocated
from vmimage.plan import Plan, make_plan
from vmimage.spec.load import load_spec
from vmimage.util.errors import BuildError, InputError
from vmimage.vm.ssh import KeyPair

MIRROR = "deb http://mirror.example/debian trixie main"


def ours(seconds: float, verify: float = 0.0) -> Ours:
    return Ours(seconds=seconds, stages={"bake": 10.0, "verify": verify}, release=Path("/dist"))


def one_round(cold: float, peer_seconds: float, verify: float = 60.0, other: float = 200.0) -> Round:
    return Round(
        ours={COLD: ours(cold, verify), NO_CHANGE: ours(1), COMPONENT: ours(50, verify), LAST_STEP: ours(40, verify)},
        boots={"qcow2-virtio-uefi": 20.0, "ova-virtualbox-bios": 30.0},
        peers={"all by apt": peer_seconds, "cloud image": other},
    )


def speeds(**changed: float) -> floor.Speeds:
    return floor.Speeds(**{"write": 100.0, "read": 200.0, "deflate": 10.0, "zstd": 20.0, "sha256": 50.0} | changed)


def plan_of_toolbox() -> Plan:
    tools = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "0")
    spec = load_spec(PROJECT / "images.yaml")
    return make_plan(spec, "toolbox", project=PROJECT, tools=tools, today=date(2026, 1, 1))


def test_figures_are_medians_and_ratios_of_them() -> None:
    found = report([one_round(100, 400), one_round(120, 500), one_round(900, 410)])
    cold = found["scenarios"][0]
    assert (cold["scenario"], cold["seconds"], cold["without_verify"]) == (COLD, 120, 60)
    assert cold["peers"] == {
        "all by apt": {
            "seconds": 410,
            "ratio": pytest.approx(120 / 410),
            "met": True,
            "without_verify_ratio": pytest.approx(60 / 410),
            "without_verify_met": True,
        },
        "cloud image": {
            "seconds": 200,
            "ratio": pytest.approx(0.6),
            "met": False,
            "without_verify_ratio": pytest.approx(0.3),
            "without_verify_met": True,
        },
    }
    assert found["runs"] == len(found["rounds"]) == 3


def test_the_peers_one_build_stands_in_all_scenarios() -> None:
    found = report([one_round(100, 400)])
    against = [row["peers"]["all by apt"] for row in found["scenarios"]]
    assert {one["seconds"] for one in against} == {400}
    assert [one["ratio"] for one in against] == pytest.approx([0.25, 0.0025, 0.125, 0.1])


def test_a_missed_goal_is_called_missed() -> None:
    found = report([one_round(200, 400, verify=61.0)])
    assert [row["peers"]["all by apt"]["met"] for row in found["scenarios"]] == [False, True, True, True]
    assert found["verify"]["ratio"] == pytest.approx(61 / 50)
    assert not found["verify"]["met"]
    shown = table(found)
    assert re.search(r"^cold +200\.0 s +0\.500 missed +139\.0 s +0\.347 met +0\.35$", shown, re.MULTILINE)
    assert re.search(r"^cold +200\.0 s +1\.000 missed +139\.0 s +0\.695 missed +0\.35$", shown, re.MULTILINE)
    assert re.search(r"^no change .* met .* met +0\.01$", shown, re.MULTILINE)
    assert re.search(r"^verify/boots .* 1\.220 +1\.20 missed$", shown, re.MULTILINE)


def test_the_table_accounts_for_all_of_a_cold_build() -> None:
    shown = table(report([one_round(100, 400)]))
    shares = re.findall(r"^\S.* s +([\d.]+)%$", shown, re.MULTILINE)
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.2)


def test_the_floor_is_bytes_over_speeds() -> None:
    parts = floor.parts(packages=100, content=1000, files={"qcow2": 300, "ova": 500}, speeds=speeds())
    seconds = {part.what: part.seconds for part in parts}
    assert seconds["write what is in them to a disk"] == 10
    assert seconds["compress it to qcow2"] == 50
    assert seconds["compress it to ova"] == 100
    assert seconds["hash them"] == 16
    found = report([one_round(434, 400)], parts)
    assert found["floor"]["seconds"] == pytest.approx(1 + 10 + 5 + 50 + 100 + 8 + 4 + 16)
    assert found["floor"]["cold_ratio"] == pytest.approx(434 / 194)
    assert re.search(r"^sum +194\.0 s$", table(found), re.MULTILINE)


def test_speeds_are_measured_on_allocated_bytes_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
        for at in (8 << 20, 40 << 20):
            file.seek(at)
            file.write(b"x" * (2 << 20))
    assert allocated(disk) == 4 << 20
    assert floor.sample(disk) == b"x" * (4 << 20)
    taken = floor.sample(disk, 2 << 20)
    assert len(taken) == 2 << 20
    assert all(rate > 0 for rate in vars(floor.measure(taken, tmp_path)).values())
    assert list(tmp_path.iterdir()) == [disk]


def test_sizes_are_read_from_a_list_of_packages() -> None:
    text = "Package: a\nVersion: 1:2-3\nSize: 40\nDescription: b\n Size: 9\n\nPackage: b\nSize: 5\nVersion: 7\n\n"
    assert dict(floor.package_sizes(text)) == {("a", "1:2-3"): 40, ("b", "7"): 5}


def test_the_build_is_read_from_its_events() -> None:
    events = [
        {"event": "end", "stage": "bake", "seconds": 31.5, "ok": True},
        {"event": "end", "stage": "verify", "seconds": 8.5, "ok": True},
        {"event": "result", "release": "/dist/toolbox/1"},
    ]
    output = "a warning\n" + "\n".join(map(json.dumps, events)) + "\n[1]\n{broken"
    build = read_build(output, 42.0)
    assert build == Ours(seconds=42.0, stages={"bake": 31.5, "verify": 8.5}, release=Path("/dist/toolbox/1"))
    assert build.without_verify == 33.5


def test_a_build_without_a_result_is_an_error() -> None:
    with pytest.raises(BuildError, match="no such mirror"):
        read_build('{"event": "error"}\nno such mirror', 1.0)


@pytest.mark.parametrize(
    ("name", "given"), [("all by apt", ("linux-image-amd64",)), ("cloud image", ("cloud-init", "linux-image-amd64"))]
)
def test_the_peer_pays_for_what_its_start_lacks_and_only_that(name: str, given: tuple[str, ...]) -> None:
    packages = ("cloud-init", "sshfs", "linux-image-amd64", "open-vm-tools", "made-up")
    found = peer.shares(packages, peer.STARTS[name])
    assert found.given == given
    assert found.installed == tuple(package for package in packages if package not in given)


@pytest.mark.parametrize("start", peer.STARTS.values(), ids=list(peer.STARTS))
def test_the_peers_base_can_boot_and_be_reached_for_every_base_of_the_project(start: peer.StartDisk) -> None:
    for base in load_spec(PROJECT / "images.yaml").bases.values():
        assert {"linux-image-amd64", "systemd-sysv", "openssh-server"} <= set(peer.shares(base.packages, start).given)


@pytest.mark.parametrize(("name", "customize"), [("all by apt", "base.sh"), ("cloud image", "")])
def test_the_peers_template_takes_exactly_the_values_that_it_is_given(name: str, customize: str) -> None:
    text = (peer.TEMPLATES / "image.pkr.hcl").read_text()
    declared = set(re.findall(r'^variable "(\w+)"', text, re.MULTILINE))
    used = set(re.findall(r"\bvar\.(\w+)", text))
    values = peer.packer_values(
        plan_of_toolbox(),
        peer.STARTS[name],
        base=Path("/base"),
        payload=Path("/payload.tar"),
        sources=[MIRROR, MIRROR],
        apt="",
        folder=Path("/work"),
        key=KeyPair(private=Path("/key"), public="ssh-ed25519 AAAA"),
        accelerator="tcg",
    )
    assert declared == used == set(values)
    assert values["customize"] == customize
    assert values["steps"] == "10-system.sh 20-kubectl.sh 30-helm.sh 40-sshfs.sh 80-bootloader.sh 99-seal.sh"
    assert values["sources"] == f"{MIRROR};{MIRROR}"
    assert "sshfs" in str(values["packages"]).split()


def test_the_guest_asks_the_relay_for_each_mirror_by_its_number() -> None:
    urls, lines = relay.sources_through([MIRROR, "deb [trusted=yes] https://m.example/s/ s-security main x"], 8000)
    assert urls == ["http://mirror.example/debian", "https://m.example/s"]
    assert lines == [
        "deb http://10.0.2.2:8000/0 trixie main",
        "deb [trusted=yes] http://10.0.2.2:8000/1 s-security main x",
    ]


@pytest.mark.parametrize("line", ["deb file:/srv/debian trixie main", "deb-src http://m.example trixie main"])
def test_a_mirror_that_no_guest_reaches_is_refused(line: str) -> None:
    with pytest.raises(InputError, match="cannot reach"):
        relay.sources_through([line], 8000)


def test_the_relay_serves_what_the_mirror_has_and_nothing_else() -> None:
    class Mirror(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/debian/pool/a.deb"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(b"package" if known else b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as mirror:
        Thread(target=mirror.serve_forever, args=(0.05,), daemon=True).start()
        with relay.relay([f"deb http://127.0.0.1:{mirror.server_port}/debian trixie main"]) as lines:
            url = lines[0].split()[1].replace(relay.GUESTS_HOST, "127.0.0.1")
            assert requests.get(f"{url}/pool/a.deb", timeout=10).content == b"package"
            for path in (f"{url}/pool/b.deb", url.replace("/0", "/1/pool/a.deb"), url.replace("/0", "/x")):
                assert requests.get(path, timeout=10).status_code == 404
        mirror.shutdown()


def test_the_guests_apt_is_told_what_this_hosts_apt_was_told_about_dates() -> None:
    dump = 'Acquire "";\nAcquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\nAcquire::Retries "3";\n'
    assert peer.apt_options(dump) == "-o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false"
    assert peer.apt_options('Acquire "";\n') == ""


def test_another_helm_changes_that_pin_and_nothing_else() -> None:
    text = (PROJECT / "images.yaml").read_text()
    before = yaml.safe_load(text)
    helm = before["pins"]["helm"]
    ours = {"version": helm["version"], "sha256": helm["sha256"]["amd64"]}
    pin = OTHER.__class__(**{**vars(OTHER), **ours})
    after = yaml.safe_load(with_other_pin(text, pin, OTHER))
    assert after["pins"]["helm"]["version"] == OTHER.version
    assert after["pins"]["helm"]["sha256"]["amd64"] == OTHER.sha256
    after["pins"]["helm"] = before["pins"]["helm"]
    assert after == before


def test_a_changed_file_is_as_before_behind_the_block(tmp_path: Path) -> None:
    file = tmp_path / "step.sh"
    file.write_text("a\n")
    with replaced(file, "b\n"):
        assert file.read_text() == "b\n"
    assert file.read_text() == "a\n"


def test_both_images_are_asked_for_packages_pinned_programs_and_configuration() -> None:
    packages, files = peer.questions(plan_of_toolbox())
    assert packages.startswith("dpkg-query -W")
    asked = files.split()
    assert {"/usr/local/bin/helm", "/usr/local/bin/kubectl", "/etc/fuse.conf", "/etc/sudoers.d/dev"} <= set(asked)
    assert not any("k3s" in path for path in asked)


def test_differences_between_the_images_are_named() -> None:
    ours = peer.Booted(seconds=1, answers=("bash 5.2\nsed 4.9\n", "aa  /usr/local/bin/helm\n"))
    theirs = peer.Booted(seconds=1, answers=("bash 5.3\ntar 1.3\n", "bb  /usr/local/bin/helm\n"))
    assert peer.differences(peer.read_answers(ours), peer.read_answers(ours)) == []
    assert peer.differences(peer.read_answers(ours), peer.read_answers(theirs)) == [
        "  /usr/local/bin/helm: ours aa, the peer's bb",
        "  bash: ours 5.2, the peer's 5.3",
        "  sed: ours 4.9, the peer's absent",
        "  tar: ours absent, the peer's 1.3",
    ]


def test_an_image_that_says_nothing_is_not_taken_for_the_same() -> None:
    with pytest.raises(BuildError, match="does not tell"):
        peer.read_answers(peer.Booted(seconds=1, answers=("", "")))
