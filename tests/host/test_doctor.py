"""`invoke doctor` on hosts where nothing is as it should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sandbox import Sandbox
from vmimage import PROJECT, host
from vmimage.commands import doctor
from vmimage.commands.doctor import examine
from vmimage.host import Finding, Tool, examine_tool
from vmimage.spec.load import load_spec
from vmimage.spec.model import size_bytes
from vmimage.util.errors import HostError
from vmimage.util.settings import Options, options

BROKEN = {
    "garbage": "head -c 3000 /dev/urandom",
    "silent": "exit 0",
    "failing": "echo libfoo.so.1.6 is missing; exit 9",
    "killed": "kill -9 $$",
    "absurd": "printf '1.'; head -c 5000 /dev/zero | tr '\\0' 9",
    "talking": "yes 1.2",
    "hanging": "sleep 100",
    "old": "echo 0.0.1",
}


@pytest.fixture
def chosen(tmp_path: Path) -> Options:
    (tmp_path / "cache" / "locks").mkdir(parents=True)
    return options({"VMIMAGE_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)})


@pytest.mark.parametrize("how", BROKEN)
def test_tool_that_is_broken(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / f"tool-{how}"
    program.write_text(f"#!/bin/sh\n{BROKEN[how]}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(host, "VERSION_SECONDS", 0.5)
    finding = examine_tool(Tool(package="tool", program=program.name, minimum="1.5", why="is needed"))
    assert (finding.good, finding.mark) == (False, "BAD")
    assert finding.state


def test_tool_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("no-binary", b"\x7fELF rubbish"), ("no-script", b"#!/none/interpreter\n")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert not examine_tool(Tool(package="p", program=name, minimum="1.5", why="")).good


def test_nothing_ends_the_report(chosen: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Finding:
        raise IndexError("list index out of range")

    def missing(*_: object) -> Finding:
        raise HostError("no guest code runs", hint="do this")

    for name in ("examine_tool", "user_namespaces", "_confinement", "_accelerator", "_sandbox", "_disk", "_memory"):
        monkeypatch.setattr(doctor, name, broken)
    for name in ("_file_system", "_firmware"):
        monkeypatch.setattr(doctor, name, broken)
    monkeypatch.setattr(doctor, "find_accelerator", missing)
    found = {finding.subject: finding for finding in examine(chosen, chosen.cache)}
    assert {"packer", "user namespaces", "kvm", "disk", "cache", "memory", "UEFI"} <= found.keys()
    assert not any(finding.good for finding in found.values())
    assert (found["accelerator"].state, found["accelerator"].remedy) == ("no guest code runs", "do this")
    assert "IndexError" in found["disk"].state


def test_memory_is_that_of_the_machines_of_verify(chosen: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(size_bytes(image.machine.memory) for image in load_spec(chosen.spec).images.values())
    for pages, good, mark in ((largest >> 12, False, "BAD"), (largest >> 11, False, "no"), (largest >> 10, True, "ok")):
        sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
        finding = doctor._memory(chosen.spec)
        assert (finding.good, finding.mark) == (good, mark)
        assert f"{2 * largest + (1 << 30) >> 20} MiB" in finding.why or "GiB" in finding.why


@pytest.mark.parametrize(("kind", "good"), [("nfs", False), ("fuseblk", False), ("ext2/ext3", True), ("tmpfs", True)])
def test_network_file_systems_are_named(
    chosen: Options, kind: str, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stat").write_text(f"#!/bin/sh\necho {kind}\n")
    (tmp_path / "stat").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    finding = doctor._file_system(chosen.cache)
    assert (finding.good, finding.needed) == (good, False)
    assert kind in finding.state
    assert not list((chosen.cache / "locks").iterdir())


def test_host_without_any_tool(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    # By which the tests start commands.
    (bare / "env").symlink_to("/usr/bin/env")
    here = Sandbox(PROJECT, tmp_path / "cache", tmp_path / "dist", {"PATH": str(bare), "VMIMAGE_ACCELERATOR": "tcg"})
    done = here.invoke("doctor", "--json")
    assert "Traceback" not in done.stderr
    found = {event["subject"]: event for event in done.events if event["event"] == "finding"}
    assert found.keys() >= {"packer", "memory", "cache"}
    assert not found["packer"]["good"]
