"""The pipeline with real parts: Debian's packages, Packer, QEMU, kubectl, helm, sshfs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from tests.e2e.conftest import Built, released_file
from tests.sandbox import Sandbox, event
from vmimage import PROJECT
from vmimage.spec.load import load_spec
from vmimage.util.run import run

PINS = load_spec(PROJECT / "images.yaml").pins
STAGES = ["fetch", "base", "bake", "export", "verify", "release"]


def test_unreachable_upstream_ends_in_fetch_with_the_way_out(sandbox: Sandbox) -> None:
    # A proxy that is not there is what a closed network looks like, wherever this test runs.
    closed = Sandbox(sandbox.project, sandbox.cache, sandbox.dist, {"https_proxy": "http://127.0.0.1:9"})
    done = closed.invoke("build-image", timeout=120)
    assert done.returncode == 4
    for pin in ("k3s", "k3s-airgap-images"):
        assert f"{pin} {PINS[pin].version} (amd64) could not be had:" in done.stderr
    version = urllib.parse.quote(PINS["k3s"].version)
    assert f"https://github.com/k3s-io/k3s/releases/download/{version}/k3s\n" in done.stderr
    assert "--mirror" in done.stderr
    assert "toolbox" in done.stderr
    assert "Traceback" not in done.stderr
    assert sandbox.versions() == []


def test_builds_after_kills_run_to_their_end_and_release_once(built: Built, release: Path, sandbox: Sandbox) -> None:
    for build in built.runs:
        ends = [seen for seen in build.events if seen["event"] == "end"]
        assert [end["stage"] for end in ends] == STAGES
        assert all(end["ok"] for end in ends)
    assert sandbox.versions() == [release.name, "latest"]
    assert (release.parent / "latest").resolve() == release
    assert not list((sandbox.cache / "work").iterdir()), "what the killed runs left is gone"


def test_killed_builds_begin_where_they_stopped(built: Built) -> None:
    told = [(seen.get("stage"), str(seen.get("what") or seen.get("outcome"))) for seen in built.killed]
    # Ended in base, bake, export and verify: each run takes what the one before had completed.
    for stage, runs in (("base", 2), ("bake", 1)):
        assert [what for each, what in told if each == stage].count("unchanged, from the cache") == runs
    for build in built.runs:
        outcomes = {seen["stage"]: seen["outcome"] for seen in build.events if seen["event"] == "end"}
        assert {outcomes[stage] for stage in ("base", "bake", "export")} == {"unchanged, from the cache"}


def test_of_two_builds_at_once_one_waits_for_the_other(built: Built) -> None:
    told = [[str(seen.get("what")) for seen in build.events if seen.get("stage") == "verify"] for build in built.runs]
    waited = [any("another process" in what for what in whats) for whats in told]
    assert sorted(waited) == [False, True]
    verified = [seen["outcome"] for build in built.runs for seen in build.events
                if seen["event"] == "end" and seen["stage"] == "verify"]  # fmt: skip
    assert sorted("checks passed" in outcome for outcome in verified) == [False, True]


def test_release_says_how_it_was_made_and_proven(release: Path) -> None:
    manifest = json.loads((release / "manifest.json").read_text())
    assert set(manifest["files"]) == {"qcow2", "ova"}
    for kind, file in manifest["files"].items():
        data = (release / file["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"] == manifest["verdict"]["files"][kind]["sha256"]
    assert set(manifest["stages"]) == set(STAGES) - {"release"}
    for stage in manifest["stages"].values():
        assert stage["seconds"] >= 0
        assert stage["peak_disk_bytes"] > 0
    assert manifest["peak_disk_bytes"] >= max(stage["peak_disk_bytes"] for stage in manifest["stages"].values())
    assert manifest["packages"]["sshfs"]
    assert {deb["package"]: deb["version"] for deb in manifest["debs"]} == manifest["packages"]
    assert all(re.fullmatch(r"[0-9a-f]{64}", deb["sha256"]) for deb in manifest["debs"])
    assert manifest["pins"]["kubectl"]["version"] == PINS["kubectl"].version
    checks = {check["name"]: check for check in manifest["verdict"]["checks"]}
    assert checks.pop("clones")["passed"]
    assert set(checks) == {"disk", "qcow2-virtio-uefi", "ova-virtualbox-bios"}
    assert all(check["passed"] and check["tests"] > 5 and not check["skipped"] for check in checks.values())
    sums = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=release, check=False)  # noqa: S607
    assert sums.returncode == 0


def test_release_lists_the_software_in_the_image(release: Path) -> None:
    manifest = json.loads((release / "manifest.json").read_text())
    names = {end: file["name"] for end, file in manifest["sboms"].items()}
    bom, spdx = (json.loads((release / names[end]).read_text()) for end in (".cdx.json", ".spdx.json"))
    purls = {each["purl"] for each in bom["components"]}
    debian = {f"{name}@{version}" for name, version in manifest["packages"].items()}
    listed = {purl.partition("?")[0].removeprefix("pkg:deb/debian/") for purl in purls if "arch=source" not in purl}
    assert {urllib.parse.unquote(each) for each in listed} >= debian
    assert f"pkg:golang/helm.sh/helm/v4@{PINS['helm'].version}" in purls
    assert len(spdx["packages"]) == len(bom["components"]) + 1, "and the image itself"
    (sshfs,) = [each for each in bom["components"] if each["purl"].startswith("pkg:deb/debian/sshfs-fuse@")]
    assert sshfs["licenses"], "of the source package"


def test_second_build_repeats_nothing(release: Path, sandbox: Sandbox) -> None:
    done = sandbox.invoke("build-image", "toolbox", "--json", timeout=120)
    assert done.returncode == 0
    outcomes = {seen["stage"]: seen["outcome"] for seen in done.events if seen["event"] == "end"}
    assert {outcomes[stage] for stage in ("base", "bake", "export", "verify")} == {"unchanged, from the cache"}
    assert "released already" in outcomes["release"]


def test_list_and_plan_know_the_release(release: Path, sandbox: Sandbox) -> None:
    assert release.name in sandbox.invoke("list").stdout
    rows = [line.split()[:2] for line in sandbox.invoke("plan", "toolbox").stdout.splitlines()]
    assert ["bake", "cached"] in rows
    assert ["release", "done"] in rows


def test_size_finds_nothing_that_need_not_be_there(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    picture = tmp_path / "size.svg"
    done = sandbox.invoke("size", "toolbox", "--json", "--output", str(picture))
    result = done.event("result")
    assert result["ratio"] <= 1.10, "the qcow2 against the same files as a tar, compressed by the same means"
    parts = [seen for seen in done.events if seen["event"] == "part"]
    assert {part["name"] for part in parts if part["group"] == "components"} >= {"kubectl", "helm"}
    assert sum(part["disk_bytes"] for part in parts if part["group"] == "not trimmed") < 1 << 20
    (qcow2,) = release.glob("*.qcow2")
    assert result["qcow2_bytes"] == qcow2.stat().st_size
    assert picture.read_text().startswith("<svg")


def test_broken_pin_is_refused(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    good = PINS["kubectl"].sha256["amd64"]
    broken = sandbox.broken(tmp_path / "project", "images.yaml", f"amd64: {good}", f"amd64: {'0' * 64}")
    done = broken.invoke("build-image", "toolbox", timeout=300)
    assert done.returncode == 4
    assert "wrong content, refused" in done.stderr
    assert good in done.stderr
    assert sandbox.versions() == [release.name, "latest"]


def test_broken_step_fails_the_build(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    broken = sandbox.broken(tmp_path / "project", "provision/40-sshfs.sh", "sshfs --version >&2", "cat /no-such-file")
    done = broken.invoke("build-image", "toolbox", "--keep-failed", "--json")
    assert done.returncode == 5
    (booted,) = [seen["what"] for seen in done.events if str(seen.get("what")).startswith("boot the base")]
    assert booted == "boot the base, behind 30-helm"
    (enter,) = (sandbox.cache / "kept").glob("*/enter")
    assert str(enter) in done.stderr
    assert "run-step 40-sshfs.sh repeats the step" in enter.read_text()
    run(["qemu-img", "check", "-q", enter.parent / "disk.qcow2"])
    assert "backing file" not in run(["qemu-img", "info", enter.parent / "disk.qcow2"]).output, "it stands by itself"
    assert "provision/40-sshfs.sh failed:\n" in done.stderr
    assert "    cat: /no-such-file: No such file or directory\n" in done.stderr
    assert "repeat it: invoke build-image toolbox" in done.stderr
    assert "run.log" in done.stderr
    assert sandbox.versions() == [release.name, "latest"]


def test_broken_check_releases_nothing(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    broken = sandbox.broken(tmp_path / "a", "tests/image/test_helm.py", 'greeting: "WELCOME"', 'greeting: "GOODBYE"')
    broken = broken.broken(tmp_path / "b", "tests/image/test_hygiene.py", 'machine-id") == b""', 'machine-id") == b"x"')
    # The longest of all checks; what is left shows that nothing else fails.
    (broken.project / "tests/image/test_system_networks.py").unlink()
    spec = broken.project / "images.yaml"
    formats = "      qcow2: {compression: zstd}\n      ova: {}\n"
    assert formats in spec.read_text()
    # In another format, so that there is a new file to release.
    spec.write_text(spec.read_text().replace(formats, "      vhdx: {}\n", 1))
    done = broken.invoke("build-image", "toolbox")
    assert done.returncode == 6
    assert "disk: test_empty_machine_id:" in done.stderr
    # In one of the two machines among which the checks are divided.
    assert re.search(r"vhdx-hyperv-bios(-again)?: test_helm_renders_a_chart", done.stderr)
    assert done.stderr.count("test_") == 2, "and nothing else failed"
    assert sandbox.versions() == [release.name, "latest"]


def test_verify_refuses_a_damaged_file_by_its_manifest(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    damaged = flipped(released_file(release, "qcow2"), tmp_path)
    (tmp_path / "manifest.json").write_bytes((release / "manifest.json").read_bytes())
    done = sandbox.invoke("verify", str(damaged), timeout=300)
    assert done.returncode == 6
    assert "is not what its manifest says" in done.stderr


def test_verify_refuses_a_damaged_ova_by_its_own_digests(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    done = sandbox.invoke("verify", str(flipped(released_file(release, "ova"), tmp_path)), timeout=300)
    assert done.returncode == 6
    assert "toolbox.vmdk has the SHA-256" in done.stderr


@pytest.mark.parametrize(("content", "status"), [(None, 2), (b"no disk at all", 6)])
def test_verify_refuses_what_is_no_image(sandbox: Sandbox, tmp_path: Path, content: bytes | None, status: int) -> None:
    if content is not None:
        (tmp_path / "x.qcow2").write_bytes(content)
    done = sandbox.invoke("verify", str(tmp_path / "x.qcow2"), timeout=120)
    assert done.returncode == status
    assert "x.qcow2" in done.stderr
    assert "Traceback" not in done.stderr


def flipped(file: Path, folder: Path) -> Path:
    """Copy a file with one bit changed in its middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file.name).write_bytes(data)
    return folder / file.name


def test_ctrl_c_stops_a_bake_at_once(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    changed = sandbox.broken(tmp_path / "project", "provision/40-sshfs.sh", "set -eu", "set -eux")
    status, _ = changed.invoke_until(event("bake", "boot"), signal.SIGINT, "build-image", "toolbox")
    assert status == 130
    assert sandbox.nothing_runs(), sandbox.processes()
    assert not list((sandbox.cache / "work").iterdir())
    assert os.listdir(sandbox.dist / "toolbox")  # noqa: PTH208
