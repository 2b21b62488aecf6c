"""A QEMU guest as a context manager: hardware, throwaway overlay, seed, serial log, screenshot."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pycdlib
import yaml
from qemu.qmp import ConnectError, ExecuteError, QMPError

from vmimage.host import find_uefi
from vmimage.util.confine import run_confined
from vmimage.util.errors import HostError, VerifyError
from vmimage.util.firmware import FirmwareName
from vmimage.util.run import spawn, tail
from vmimage.vm.accelerator import Accelerator, acceleration, cpu_model
from vmimage.vm.forwards import smbios_arguments
from vmimage.vm.profiles import PROFILES
from vmimage.vm.qmp import Monitor
from vmimage.vm.sandbox import sandbox_arguments
from vmimage.vm.serial import bounded

SERIAL = "serial.log"
AGENT_SECONDS = 60.0
LISTEN_SECONDS = 0.5
"""To QEMU's events, before it is looked whether it still runs."""
CONSOLE_LINES = 30
MOST_CONSOLE_BYTES = 64 << 10
MOST_ANSWER_BYTES = 64 << 10
"""Of the guest agent."""
SHOWN_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The virtual hardware a guest is given.

    Attributes:
        profile: A name of PROFILES.
        memory: MiB.
        forwards: Guest port -> port on this host's loopback; 0 lets the kernel choose a free one.
        restrict: The guest reaches nothing outside; only the forwards go in.
        told: What the guest is told of its forwards, like `forwards`; nothing when None.
        throwaway: What the guest writes need not survive this host: no flush waits for its disk.
    """

    profile: str = "virtio"
    firmware: FirmwareName = "bios"
    accelerator: Accelerator
    cpus: int = 2
    memory: int = 2048
    forwards: Mapping[int, int]
    told: Mapping[int, int] | None = None
    restrict: bool = True
    throwaway: bool = False


def write_seed(
    path: Path,
    *,
    public_keys: Sequence[str],
    hostname: str,
    instance_id: str,
    user_data: Mapping[str, object] | None = None,
) -> None:
    """Write a NoCloud seed: an ISO labelled `cidata` that gives the default user these ssh keys.

    Args:
        user_data: More of a cloud-config; its own keys come first.

    Source: https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
    """
    meta = {"instance-id": instance_id, "local-hostname": hostname}
    user = {**(user_data or {})}
    own = user.get("ssh_authorized_keys") or []
    user["ssh_authorized_keys"] = [*(own if isinstance(own, list) else [own]), *public_keys]
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for name, text in (
        ("meta-data", yaml.safe_dump(meta)),
        ("user-data", "#cloud-config\n" + yaml.safe_dump(user, sort_keys=False)),
    ):
        data = text.encode()
        short = f"/{name.replace('-', '').upper()[:8]}.;1"
        iso.add_fp(BytesIO(data), len(data), short, rr_name=name, joliet_path=f"/{name}")
    iso.write(str(path))
    iso.close()


def make_overlay(disk: Path, disk_format: str, overlay: Path, *, grow_by: int = 0) -> None:
    """Make a qcow2 that takes all writes to a disk, and may be larger than it.

    Args:
        grow_by: Bytes by which the guest's disk is larger than the file's.
    """
    beneath: list[str | Path] = ["-b", disk.absolute(), "-F", disk_format]
    run_confined(["qemu-img", "create", "-q", "-f", "qcow2", *beneath, overlay], writable=[overlay.parent])
    if grow_by:
        run_confined(["qemu-img", "resize", "-q", "-f", "qcow2", overlay, f"+{grow_by}"], writable=[overlay.parent])


def qemu_command(
    hardware: Hardware, *, disk: Path, seed: Path, folder: Path, serial: str, fds: tuple[int, int] | None = None
) -> list[str]:
    """Return the QEMU command of a machine; copies the UEFI variables into `folder`.

    Args:
        serial: QEMU's `-serial`.
        fds: Sockets for the monitor (QMP) and for the guest agent; a machine without them has neither.
    """
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in hardware.forwards.items())
    restrict = ",restrict=on" if hardware.restrict else ""
    profile = PROFILES[hardware.profile]
    command = ["qemu-system-x86_64", *sandbox_arguments(), "-nodefaults", "-no-user-config", "-name", "vmimage"]
    command += ["-machine", profile.board, "-accel", acceleration(hardware.accelerator)]
    command += ["-cpu", cpu_model(hardware.accelerator)]
    command += ["-smp", str(hardware.cpus), "-m", str(hardware.memory)]
    command += ["-display", "none", "-vga", "std", "-device", "virtio-rng-pci"]
    command += ["-serial", serial]
    command += ["-netdev", f"user,id=net0{restrict}{forwards}", "-device", f"{profile.network},netdev=net0"]
    if hardware.told is not None:
        command += smbios_arguments(hardware.told)
    # A full disk of the host is an error at once; by default QEMU would stop the machine and wait for room.
    cache = "unsafe" if hardware.throwaway else "writeback"
    options = f"format=qcow2,if=none,id=root,discard=unmap,werror=report,cache={cache}"
    command += ["-drive", f"file={qemu_value(disk)},{options}"]
    *controllers, root = profile.disk
    for device in (*controllers, f"{root},bootindex=1"):
        command += ["-device", device]
    command += ["-drive", f"file={qemu_value(seed)},format=raw,if=none,id=seed,readonly=on"]
    for device in profile.seed:
        command += ["-device", device]
    if fds:
        command += ["-chardev", f"socket,id=qmp,fd={fds[0]}", "-mon", "chardev=qmp,mode=control"]
    if fds and profile.agent:
        command += ["-chardev", f"socket,id=agent,fd={fds[1]}", "-device", "virtio-serial-pci"]
        command += ["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]
    if hardware.firmware == "uefi":
        firmware = find_uefi()
        variables = folder / "uefi-variables.fd"
        shutil.copyfile(firmware.variables, variables)
        command += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={qemu_value(firmware.code)}"]
        command += ["-drive", f"if=pflash,format=raw,unit=1,file={qemu_value(variables)}"]
    return command


def qemu_value(path: Path) -> str:
    """Quote a path inside one of QEMU's comma-separated options."""
    return str(path).replace(",", ",,")


def appended(identity: str, path: Path) -> str:
    """Return QEMU's `-chardev` that appends to a file, so that it can be cut while it is written."""
    return f"file,id={identity},path={qemu_value(path)},append=on"


class Machine:
    """A running guest."""

    def __init__(
        self, process: subprocess.Popen[str], monitor: Monitor, serial: Path, agent: socket.socket | None = None
    ) -> None:
        self._process = process
        self._monitor = monitor
        self._agent = agent
        self.serial = serial

    def alive(self) -> bool:
        """Tell whether QEMU still runs."""
        return self._process.poll() is None

    def wait(self, on_write_error: Callable[[str], object]) -> int:
        """Wait until QEMU ends (the guest was shut down); returns its exit status.

        Args:
            on_write_error: Is told once when this host does not take what the guest writes, with QEMU's reason: its
                disk is full, for instance. The guest alone would know of it.
        """
        while self.alive():
            if (why := self._monitor.write_error(LISTEN_SECONDS)) is not None:
                on_write_error(why)
        return self._process.wait()

    def port(self, guest_port: int) -> int:
        """Return the port on this host's loopback that leads to a port of the guest."""
        table = str(self._monitor.command("human-monitor-command", **{"command-line": "info usernet"}))
        for line in table.splitlines():
            # "  TCP[HOST_FORWARD]  12   127.0.0.1 45123   10.0.2.15    22     0     0"
            match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+(\d+)", line)
            if match and int(match[2]) == guest_port:
                return int(match[1])
        raise VerifyError(f"QEMU forwards no port to {guest_port}:\n{table}")

    def operating_system(self) -> dict[str, object] | None:
        """Return what QEMU's guest agent says of the system; None in machines that have no channel to it.

        Source: https://qemu.readthedocs.io/en/latest/interop/qemu-ga-ref.html

        Raises:
            VerifyError: It does not answer.
        """
        if not self._agent:
            return None
        try:
            self._agent.settimeout(AGENT_SECONDS)
            self._agent.sendall(b'{"execute": "guest-get-osinfo"}\n')
            answer = json.loads(read_line(self._agent, seconds=AGENT_SECONDS))
        except (OSError, ValueError, RecursionError) as error:
            raise VerifyError(f"the QEMU guest agent does not answer: {error}") from error
        system = answer.get("return") if isinstance(answer, dict) else None
        if not isinstance(system, dict):
            raise VerifyError(f"the QEMU guest agent answers something else: {str(answer)[:SHOWN_CHARACTERS]}")
        return system

    def screenshot(self, path: Path) -> bool:
        """Write the guest's screen as a PNG; returns whether that could be done."""
        try:
            self._monitor.command("screendump", filename=str(path), format="png")
        except (ExecuteError, QMPError, OSError, EOFError):
            return False
        return True


def read_line(connection: socket.socket, *, seconds: float, most: int = MOST_ANSWER_BYTES) -> bytes:
    """Return what a guest sends up to the end of a line; what comes behind it is dropped.

    Raises:
        ValueError: It is longer than `most` bytes, or there is no end.
        OSError: It takes more than `seconds` in all, or nothing can be received.
    """
    text = bytearray()
    end = time.monotonic() + seconds
    while b"\n" not in text:
        connection.settimeout(max(0.01, end - time.monotonic()))
        part = connection.recv(4096)
        text += part
        if not part or len(text) > most:
            raise ValueError(f"it ended after {len(text)} bytes" if not part else f"it says more than {most} bytes")
        if time.monotonic() > end:
            raise TimeoutError(f"its answer did not end within {seconds:.0f} s")
    return bytes(text.partition(b"\n")[0])


def console_end(serial: Path, lines: int = CONSOLE_LINES) -> str:
    """Return the end of what a guest wrote to its serial console, to stand behind an error message.

    Control sequences are left out: they would act on the terminal of who reads it.
    """
    if not serial.exists():
        return ""
    with serial.open("rb") as file:
        file.seek(max(0, serial.stat().st_size - MOST_CONSOLE_BYTES))
        text = file.read().decode(errors="replace")
    return tail(re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9])|[^\n\x20-\x7e]", "", text), lines)


@contextlib.contextmanager
def start(hardware: Hardware, *, disk: Path, seed: Path, folder: Path) -> Iterator[Machine]:
    """Start a guest; it is killed at the end of the `with` block, if it still runs.

    Args:
        disk: A qcow2 overlay; it is written to.
        folder: Where the serial log, QEMU's messages and the UEFI variables go.

    Raises:
        HostError: QEMU did not start.
    """
    serial = folder / SERIAL
    messages = folder / "qemu.log"
    with contextlib.ExitStack() as stack:
        (ours, theirs), (agent, agent_theirs) = socket.socketpair(), socket.socketpair()
        for end in (ours, agent):
            stack.enter_context(end)
        with theirs, agent_theirs:
            fds = (theirs.fileno(), agent_theirs.fileno())
            command = qemu_command(hardware, disk=disk, seed=seed, folder=folder, serial="chardev:console", fds=fds)
            command += ["-chardev", appended("console", serial)]
            stack.enter_context(bounded(serial, messages))
            process = stack.enter_context(spawn(command, output=messages, pass_fds=fds))
        monitor = Monitor()
        stack.callback(monitor.close)
        try:
            monitor.connect(ours)
        except (OSError, EOFError, ConnectError, TimeoutError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            said = messages.read_text(errors="replace").strip()
            raise HostError(f"QEMU did not start: {said or error}", hint="run `invoke doctor`") from error
        yield Machine(process, monitor, serial, agent if PROFILES[hardware.profile].agent else None)
