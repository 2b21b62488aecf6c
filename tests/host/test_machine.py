from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest
import yaml

from tests.tools import seed_texts
from vmimage.util.errors import HostError, VerifyError
from vmimage.util.firmware import FirmwareName
from vmimage.util.run import run
from vmimage.vm import serial
from vmimage.vm.accelerator import acceleration
from vmimage.vm.machine import Hardware, Machine, console_end, make_overlay, qemu_command, qemu_value, start, write_seed
from vmimage.vm.profiles import PROFILES
from vmimage.vm.qmp import Monitor
from vmimage.vm.sandbox import probe, sandbox_arguments

TCG = Hardware(accelerator="tcg", forwards={22: 0, 80: 8080}, memory=64, cpus=1)


def command(hardware: Hardware, folder: Path) -> str:
    paths = {"disk": folder / "a,b.qcow2", "seed": folder / "seed.iso", "folder": folder}
    return " ".join(qemu_command(hardware, **paths, serial="stdio", fds=(7, 8)))


def test_forwards_listen_on_loopback_only_and_the_guest_is_shut_in(tmp_path: Path) -> None:
    text = command(TCG, tmp_path)
    assert "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:8080-:80" in text
    assert "-nodefaults -no-user-config" in text
    assert f"-accel {acceleration('tcg')} " in text


def test_qemu_is_in_its_sandbox(tmp_path: Path) -> None:
    """Where this host can; what stands in the command was tried with a QEMU that really starts."""
    sandbox = sandbox_arguments()
    assert probe(sandbox)
    assert " ".join(sandbox) in command(TCG, tmp_path)
    assert not probe(("-sandbox", "on,unknown=deny"))


def test_qemu_without_seccomp_runs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vmimage.vm.sandbox.SANDBOX", "on,unknown=deny")
    assert "-sandbox" not in command(TCG, tmp_path)
    assert "QEMU runs without its sandbox" in caplog.text


def test_a_user_may_let_the_guest_out(tmp_path: Path) -> None:
    assert "restrict" not in command(Hardware(accelerator="kvm", forwards={}, restrict=False), tmp_path)


def test_guest_is_told_its_forwards_if_somebody_says_so(tmp_path: Path) -> None:
    told = Hardware(accelerator="tcg", forwards={22: 0}, told={22: 2223, 31000: 31000})
    assert " -smbios type=11,value=io.systemd.credential:vmimage.forwards=22=2223 31000 " in command(told, tmp_path)
    assert "-smbios" not in command(TCG, tmp_path)


def test_uefi_gets_its_own_copy_of_the_variables(tmp_path: Path) -> None:
    text = command(Hardware(accelerator="tcg", forwards={}, firmware="uefi"), tmp_path)
    assert f"unit=1,file={tmp_path}/uefi-variables.fd" in text
    assert (tmp_path / "uefi-variables.fd").stat().st_size > 0
    assert "pflash" not in command(TCG, tmp_path)


def test_guest_agent_has_a_channel_only_in_machines_that_have_one(tmp_path: Path) -> None:
    assert "org.qemu.guest_agent.0" in command(TCG, tmp_path)
    assert "virtserialport" not in command(Hardware(accelerator="tcg", forwards={}, profile="vmware"), tmp_path)


def test_commas_in_paths_are_doubled() -> None:
    assert qemu_value(Path("/a,b/c")) == "/a,,b/c"


def test_seed_is_what_cloud_init_looks_for(tmp_path: Path) -> None:
    seed = tmp_path / "seed.iso"
    write_seed(seed, public_keys=["ssh-ed25519 AAAA me: {x}"], hostname="box", instance_id="i-1")
    texts = seed_texts(seed)
    assert yaml.safe_load(texts["meta-data"]) == {"instance-id": "i-1", "local-hostname": "box"}
    assert texts["user-data"].startswith("#cloud-config\n")
    assert yaml.safe_load(texts["user-data"]) == {"ssh_authorized_keys": ["ssh-ed25519 AAAA me: {x}"]}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An overlay on a disk that writes to the serial port and halts."""
    # mov dx, 0x3f8; mov al, 'A'; out dx, al; cli; hlt
    code = b"\xba\xf8\x03\xb0\x41\xee\xfa\xf4"
    raw = tmp_path / "disk.raw"
    raw.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    make_overlay(raw, "raw", tmp_path / "overlay.qcow2", grow_by=1 << 20)
    write_seed(tmp_path / "seed.iso", public_keys=[], hostname="x", instance_id="x")
    return tmp_path / "overlay.qcow2"


def test_overlay_is_larger_than_its_disk(disk: Path) -> None:
    assert '"virtual-size": 2097664' in run(["qemu-img", "info", "--output=json", disk]).output


def test_a_real_guest(disk: Path, tmp_path: Path) -> None:
    with start(TCG, disk=disk, seed=tmp_path / "seed.iso", folder=tmp_path) as machine:
        assert machine.alive()
        port = machine.port(22)
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            pass
        assert machine.screenshot(tmp_path / "screen.png")
        assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
        pid = machine._process.pid
    assert not Path(f"/proc/{pid}").exists()


def test_qemu_that_does_not_start_says_why(tmp_path: Path, disk: Path) -> None:
    with (
        pytest.raises(HostError, match=r"none\.qcow2"),
        start(TCG, disk=tmp_path / "none.qcow2", seed=tmp_path / "seed.iso", folder=tmp_path),
    ):
        pass


def test_console_tail_has_no_control_sequences(tmp_path: Path) -> None:
    serial = tmp_path / "serial.log"
    serial.write_bytes(b"\x1b[2J\x1b[01;01HGRUB\r\n\n[\x1b[0;32m  OK  \x1b[0m] Started x\r\n\xff\xfe\n")
    assert console_end(serial) == "\n    GRUB\n    [  OK  ] Started x"
    assert console_end(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("name", "firmware"), [(name, firmware) for name, profile in PROFILES.items() for firmware in profile.firmwares]
)
def test_qemu_has_the_devices_of_every_profile(name: str, firmware: FirmwareName, disk: Path, tmp_path: Path) -> None:
    told = {22: 12222, **{port: port for port in range(31000, 31512, 2)}}
    hardware = Hardware(
        accelerator="tcg", forwards={22: 0}, told=told, memory=64, cpus=1, profile=name, firmware=firmware
    )
    with start(hardware, disk=disk, seed=tmp_path / "seed.iso", folder=tmp_path) as machine:
        assert machine.alive()
        assert machine.port(22) > 0


def asked(answer: bytes) -> object:
    """Ask a machine for its system whose guest agent has answered, and says no more."""
    ours, theirs = socket.socketpair()
    with contextlib.closing(Monitor()) as monitor, ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        return Machine(None, monitor, Path("none"), ours).operating_system()  # type: ignore[arg-type]


def test_guest_agent_is_read() -> None:
    assert asked(b'{"return": {"id": "debian"}}\nmore') == {"id": "debian"}


OTHER_ANSWERS = [
    *(b"\n", b"[]\n", b"null\n", b"5\n", b'"x"\n', b'{"error": {}}\n', b"\xff\n", b"[" * 60_000 + b"\n"),
    *(b'{"return": []}\n', b'{"return": null}\n'),
    # Without an end.
    *(b"", b"{", b"x" * 100_000, b'{"return": {}}'),
]


@pytest.mark.parametrize("answer", OTHER_ANSWERS, ids=lambda answer: str(answer[:20]))
def test_guest_agent_that_answers_something_else_is_an_error(answer: bytes) -> None:
    with pytest.raises(VerifyError, match=r"^the QEMU guest agent (does not answer|answers something else)") as refused:
        asked(answer)
    assert len(str(refused.value)) < 500


def test_guest_agent_that_answers_slowly_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and the end of the line never."""
    monkeypatch.setattr("vmimage.vm.machine.AGENT_SECONDS", 0.5)
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.1):
            theirs.sendall(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    try:
        with (
            contextlib.closing(Monitor()) as monitor,
            pytest.raises(VerifyError, match=r"did not end within|timed out"),
        ):
            Machine(None, monitor, Path("none"), ours).operating_system()  # type: ignore[arg-type]
        assert time.monotonic() - started < 5
    finally:
        stop.set()
        thread.join()
        ours.close()
        theirs.close()


def test_console_that_is_filled_without_end_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "MOST_BYTES", 10_000)
    monkeypatch.setattr(serial, "KEPT_BYTES", 1000)
    monkeypatch.setattr(serial, "LOOK_EVERY_SECONDS", 0.02)
    path = tmp_path / "serial.log"
    with serial.bounded(path), path.open("ab", buffering=0) as file:
        for number in range(2000):
            file.write(b"%06d " % number + b"x" * 92 + b"\n")
            time.sleep(0.0002)
    assert path.stat().st_size <= 10_000
    assert serial.was_cut(path)
    assert path.read_bytes().splitlines()[-1].startswith(b"001999 ")
    path.write_bytes(b"little")
    serial.cut(path)
    assert path.read_bytes() == b"little"
    assert not serial.was_cut(path)
