from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.tools import free_port, host_key, released
from vmimage.access.known_hosts import host_name, known_keys, record
from vmimage.cache.store import Store
from vmimage.commands.run_image import further_ports, run_release
from vmimage.stages.release.dist import Release, choose
from vmimage.util.console import Console
from vmimage.util.errors import HostError, VerifyError
from vmimage.util.ports import ranges
from vmimage.util.run import run
from vmimage.util.settings import Options, options
from vmimage.vm.forwards import FORWARDS
from vmimage.vm.machine import Hardware

VERSION = "20261127-01234567"


def talking_disk(text: bytes) -> bytes:
    """Return a raw disk that writes a text to the serial port and switches the machine off."""
    # xor ax,ax; mov ds,ax; mov si,text; mov dx,0x3f8; next: lodsb; test al,al; jz off; out dx,al; jmp next
    code = b"\x31\xc0\x8e\xd8\xbe\x1a\x7c\xba\xf8\x03\xac\x84\xc0\x74\x03\xee\xeb\xf8"
    # off: mov dx,0x604; mov ax,0x2000; out dx,ax; hlt; text:
    code += b"\xba\x04\x06\xb8\x00\x20\xef\xf4" + text + b"\0"
    return code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20)


def release_of(dist: Path, raw: bytes, **more: object) -> Release:
    """Put a release of a raw disk, as a qcow2, into dist/."""
    dist.mkdir(exist_ok=True)
    (dist / "disk.raw").write_bytes(raw)
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", dist / "disk.raw", dist / "disk.qcow2"])
    more = {"machine": {"cpus": 1, "memory": "64 MiB"}, **more}
    released(dist, "small", VERSION, (dist / "disk.qcow2").read_bytes(), **more)
    return choose(dist, "small", None)


def start(
    chosen: Options,
    ports: Mapping[str, int],
    release: Release,
    disk: Path | None = None,
    *,
    seed: Path | None = None,
    isolated: bool = False,
) -> None:
    """Do what `invoke run` does."""
    run_release(
        release,
        chosen,
        Store(chosen.cache),
        Console(json_lines=True),
        profile="virtio",
        firmware="bios",
        ports=ports,
        public_keys=[],
        disk=disk,
        seed=seed,
        isolated=isolated,
    )


def test_keys_that_a_machine_tells_replace_those_of_the_last_one_at_its_port(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, last, other = host_key("ed25519"), host_key("ed25519"), host_key("ecdsa")
    ports = {name: free_port() for name in FORWARDS}
    here, elsewhere = host_name("127.0.0.1", ports["ssh"]), host_name("127.0.0.1", 1)
    chosen = options({"VMIMAGE_CACHE": f"{tmp_path}/cache", "VMIMAGE_STATE": f"{tmp_path}/state"}, accelerator="tcg")
    record(chosen.known_hosts, here, [last, other])
    record(chosen.known_hosts, elsewhere, [last])
    line = f"[    9.1] host-keys[312]: vmimage-host-key {ours.get_name()} {ours.get_base64()}\r\n"
    start(chosen, ports, release_of(tmp_path / "dist", talking_disk(line.encode())))
    assert known_keys(chosen.known_hosts, here) == [ours]
    assert known_keys(chosen.known_hosts, elsewhere) == [last]
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["keys"] for event in events if event["event"] == "host-keys"] == [{"ssh-ed25519": ours.fingerprint}]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Hardware]:
    """The hardware of machines that would be started: none is."""
    asked: list[Hardware] = []

    def refuse(hardware: Hardware, **_: object) -> None:
        asked.append(hardware)
        raise HostError("not here")

    monkeypatch.setattr("vmimage.commands.run_image.start", refuse)
    return asked


@pytest.mark.parametrize("isolated", [True, False])
def test_isolated_machine_reaches_nothing(isolated: bool, tmp_path: Path, asked: list[Hardware]) -> None:
    chosen = options({"VMIMAGE_CACHE": f"{tmp_path}/cache", "VMIMAGE_STATE": f"{tmp_path}/state"}, accelerator="tcg")
    ports = {name: free_port() for name in FORWARDS}
    with pytest.raises(HostError, match="not here"):
        start(chosen, ports, release_of(tmp_path / "dist", talking_disk(b"")), isolated=isolated)
    (hardware,) = asked
    assert (hardware.restrict, 22 in hardware.forwards) == (isolated, True)


def test_machine_is_told_its_ports_without_those_that_are_taken(tmp_path: Path, asked: list[Hardware]) -> None:
    chosen = options({"VMIMAGE_CACHE": f"{tmp_path}/cache", "VMIMAGE_STATE": f"{tmp_path}/state"}, accelerator="tcg")
    ports = {name: free_port() for name in FORWARDS}
    with socket.create_server(("127.0.0.1", 0)) as busy:
        taken = busy.getsockname()[1]
        machine = {"cpus": 1, "memory": "64 MiB", "ports": f"{taken}-{taken}"}
        release = release_of(tmp_path / "dist", talking_disk(b""), machine=machine)
        # A seed of the user's own, whatever is in it.
        seed = tmp_path / "seed.iso"
        seed.touch()
        with pytest.raises(HostError, match="not here"):
            start(chosen, ports, release, seed=seed)
    assert asked[0].told == {forward.guest: ports[name] for name, forward in FORWARDS.items()} == asked[0].forwards


def test_run_that_cannot_start_leaves_the_keys_of_the_machine_that_has_the_port(tmp_path: Path) -> None:
    key = host_key("ed25519")
    chosen = options({"VMIMAGE_CACHE": f"{tmp_path}/cache", "VMIMAGE_STATE": f"{tmp_path}/state"}, accelerator="tcg")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        record(chosen.known_hosts, host_name("127.0.0.1", port), [key])
        with pytest.raises(HostError, match="in use on localhost"):
            start(chosen, {"ssh": port}, release_of(tmp_path / "dist", b"x" * 512))
    assert known_keys(chosen.known_hosts, host_name("127.0.0.1", port)) == [key]


def test_file_that_is_not_the_released_one_is_not_started(tmp_path: Path) -> None:
    chosen = options({"VMIMAGE_CACHE": f"{tmp_path}/cache", "VMIMAGE_STATE": f"{tmp_path}/state"}, accelerator="tcg")
    ports = {name: free_port() for name in FORWARDS}
    files = {"qcow2": {"name": f"small-{VERSION}-amd64.qcow2", "bytes": 1, "sha256": "0" * 64}}
    verdict = {"passed": True, "files": {"qcow2": {"sha256": "0" * 64}}, "checks": [{"name": "qcow2-virtio-bios"}]}
    release = release_of(tmp_path / "dist", b"x" * 512, files=files, verdict=verdict)
    for disk in (None, tmp_path / "my.qcow2"):
        with pytest.raises(VerifyError, match="is not what its manifest says"):
            start(chosen, ports, release, disk)
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "dist"}, "nothing half-made stays"


def test_ports_that_are_in_use_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmimage.commands.run_image.is_taken", lambda port: port in (31003, 31004, 31009))
    free, skipped = further_ports("31000-31010", {"ssh": 31006, "kubernetes": 16443})
    assert ranges(free) == "31000-31002, 31005, 31007-31008, 31010"
    assert ranges(skipped) == "31003-31004, 31006, 31009"
    assert further_ports("6443-6443", {"kubernetes": 16443}) == ([], [6443]), "the guest's port leads elsewhere already"
    free, skipped = further_ports("20000-29999", {})
    assert len(free) == 512
    assert ranges(skipped) == "20512-29999"
    assert further_ports(None, {}) == ([], [])
