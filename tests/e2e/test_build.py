"""The pipeline with real parts: Debian's packages, Packer, QEMU, kubectl, helm, sshfs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import paramiko
import pytest

from tests.sandbox import Done, Sandbox, event
from vmimage.machine import FORWARDS
from vmimage.run import run
from vmimage.ssh import connect, make_key

STAGES = ["fetch", "base", "bake", "export", "verify", "release"]


def test_unreachable_upstream_ends_in_fetch_with_the_way_out(sandbox: Sandbox) -> None:
    # A proxy that is not there is what a closed network looks like, wherever this test runs.
    closed = Sandbox(sandbox.project, sandbox.cache, sandbox.dist, {"https_proxy": "http://127.0.0.1:9"})
    done = closed.invoke("build-image", timeout=120)
    assert done.returncode == 4
    for file in ("k3s v1.36.4+k3s1", "k3s-airgap-images v1.36.4+k3s1"):
        assert f"{file} (amd64) could not be had:" in done.stderr
    assert "https://github.com/k3s-io/k3s/releases/download/v1.36.4%2Bk3s1/k3s\n" in done.stderr
    assert "--mirror" in done.stderr
    assert "toolbox" in done.stderr
    assert "Traceback" not in done.stderr
    assert sandbox.versions() == []


def test_build_after_kills_runs_every_stage_and_releases(built: Done, release: Path, sandbox: Sandbox) -> None:
    ends = [seen for seen in built.events if seen["event"] == "end"]
    assert [end["stage"] for end in ends] == STAGES
    assert all(end["ok"] for end in ends)
    assert sandbox.versions() == [release.name, "latest"]
    assert (release.parent / "latest").resolve() == release
    assert not list((sandbox.cache / "work").iterdir()), "what the killed runs left is gone"


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
    assert manifest["pins"]["kubectl"]["version"] == "v1.37.1"
    checks = {check["name"]: check for check in manifest["verdict"]["checks"]}
    assert set(checks) == {"disk", "qcow2-virtio-uefi", "ova-virtualbox-bios"}
    assert all(check["passed"] and check["tests"] > 5 and not check["skipped"] for check in checks.values())
    sums = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=release, check=False)  # noqa: S607
    assert sums.returncode == 0


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
    good = "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8"
    broken = sandbox.broken(tmp_path / "project", "images.yaml", f"amd64: {good}", f"amd64: {'0' * 64}")
    done = broken.invoke("build-image", "toolbox", timeout=300)
    assert done.returncode == 4
    assert "wrong content, refused" in done.stderr
    assert good in done.stderr
    assert sandbox.versions() == [release.name, "latest"]


def test_broken_step_fails_the_build(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    broken = sandbox.broken(tmp_path / "project", "provision/40-sshfs.sh", "sshfs --version >&2", "cat /no-such-file")
    done = broken.invoke("build-image", "toolbox")
    assert done.returncode == 5
    assert "provision/40-sshfs.sh failed:\n" in done.stderr
    assert "    cat: /no-such-file: No such file or directory\n" in done.stderr
    assert "run.log" in done.stderr
    assert sandbox.versions() == [release.name, "latest"]


def test_broken_check_releases_nothing(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    # Another compression, so that there is a new file to release; both kinds of check are broken.
    broken = sandbox.broken(tmp_path / "a", "tests/image/test_helm.py", 'greeting: "WELCOME"', 'greeting: "GOODBYE"')
    broken = broken.broken(
        tmp_path / "b", "tests/image/test_hygiene.py", '.read_bytes() == b""', '.read_bytes() == b"x"'
    )
    spec = broken.project / "images.yaml"
    spec.write_text(spec.read_text().replace("qcow2: {compression: zstd}", "qcow2: {compression: zlib}"))
    done = broken.invoke("build-image", "toolbox")
    assert done.returncode == 6
    assert "disk: test_empty_machine_id:" in done.stderr
    assert "qcow2-virtio-uefi: test_helm_renders_a_chart" in done.stderr
    assert done.stderr.count("test_") == 2, "and nothing else failed"
    assert sandbox.versions() == [release.name, "latest"]


def test_verify_of_a_file_by_itself_as_hyper_v_would_start_it(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "toolbox.vhdx"
    run(["qemu-img", "convert", "-O", "vhdx", released_file(release, "qcow2"), file])
    done = sandbox.invoke("verify", str(file), "--json")
    assert done.returncode == 0, done.stderr
    verdict = done.event("result")["verdict"]
    assert (verdict["passed"], verdict["unchanged"]) == (True, True)
    with file.open("rb") as content:
        assert verdict["files"]["vhdx"]["sha256"] == hashlib.file_digest(content, "sha256").hexdigest()
    evidence = Path(done.event("run")["log"]) / "verify" / "vhdx-hyperv-bios"
    assert (evidence / "junit.xml").stat().st_size > 1000
    assert (evidence / "screen.png").stat().st_size > 1000
    assert "login" in (evidence / "serial.log").read_text(errors="replace")
    assert not list(evidence.glob("id_*"))


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


def released_file(release: Path, kind: str) -> Path:
    return release / str(json.loads((release / "manifest.json").read_text())["files"][kind]["name"])


def flipped(file: Path, folder: Path) -> Path:
    """Copy a file with one bit changed in its middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file.name).write_bytes(data)
    return folder / file.name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_run_lets_the_users_key_in_and_ends_on_sigterm(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    key = make_key(tmp_path)
    (tmp_path / "key.pub").write_text(key.public + "\n")
    ports = {name: free_port() for name in FORWARDS}
    options = [f"--{name}-port={port}" for name, port in ports.items()]
    process = sandbox.start("run", "toolbox", "--ssh-key", str(tmp_path / "key.pub"), *options)
    assert process.stdout
    assert process.stderr
    with process.stdout, process.stderr:
        shown = process.stdout.readline()
        assert "toolbox" in shown
        end = time.monotonic() + 420
        while time.monotonic() < end:
            assert process.poll() is None, process.stderr.read()
            try:
                with connect(ports["ssh"], "dev", key.private) as client:
                    _, stdout, _ = client.exec_command("kubectl version --client", timeout=60)
                    assert "v1.37.1" in stdout.read().decode()
                    break
            except (OSError, EOFError, paramiko.SSHException):
                time.sleep(1)
        else:
            pytest.fail("the machine did not answer ssh")
        use_shared_directory(sandbox, tmp_path, ports["ssh"], key.private)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert sandbox.nothing_runs(), sandbox.processes()
    assert not list((sandbox.cache / "work").iterdir())


def use_shared_directory(sandbox: Sandbox, folder: Path, port: int, key: Path) -> None:
    """Share a directory with a running machine: files come and go both ways, links lead nowhere, Ctrl-C unmounts."""
    ours = folder / "my files"
    ours.mkdir()
    (ours / "from host").write_text("hello\n")
    (folder / "secret").write_text("secret\n")
    (ours / "out").symlink_to(folder / "secret")
    process = sandbox.start("share", str(ours), "--ssh-port", str(port), "--ssh-key", str(key))
    assert process.stdout
    assert process.stderr
    with process.stdout, process.stderr, connect(port, "dev", key) as client:

        def guest(command: str) -> str:
            _, stdout, stderr = client.exec_command(command, timeout=60)
            return str((stdout.read() + stderr.read()).decode())

        assert "is /home/dev/my files in" in process.stdout.readline()
        assert guest("cat 'my files/from host'; stat -c %U 'my files/from host'; sudo ls 'my files'") == (
            "hello\ndev\nfrom host\nout\n"
        )
        assert "No such file" in guest("cat 'my files/out'")
        assert guest("cd 'my files'; echo new > new; mv new 'from host'; mkdir -p a/b; df . | tail -1 | wc -l") == "1\n"
        assert (ours / "from host").read_text() == "new\n"
        assert (ours / "a/b").is_dir()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert guest("findmnt -t fuse.sshfs; pgrep sshfs; ls -A 'my files'") == ""


def test_ctrl_c_stops_a_bake_at_once(release: Path, sandbox: Sandbox, tmp_path: Path) -> None:
    changed = sandbox.broken(tmp_path / "project", "provision/40-sshfs.sh", "set -eu", "set -eux")
    status = changed.invoke_until(event("bake", "boot"), signal.SIGINT, "build-image", "toolbox")
    assert status == 130
    assert sandbox.nothing_runs(), sandbox.processes()
    assert not list((sandbox.cache / "work").iterdir())
    assert os.listdir(sandbox.dist / "toolbox")  # noqa: PTH208
