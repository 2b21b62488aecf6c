"""One machine of a verification: a clone of a file, the tests inside it, and what it is known by."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import paramiko
from qemu.qmp import ExecuteError, QMPError

from vmimage.formats.format import Opened
from vmimage.spec.model import size_bytes
from vmimage.stages.kept import keep_disk, write_enter
from vmimage.stages.verify.checks import Check, dealt_tests, run_tests
from vmimage.stages.verify.subject import Subject
from vmimage.util.console import Step
from vmimage.util.errors import HostError, VmimageError
from vmimage.util.files import place
from vmimage.vm.accelerator import Accelerator, machine_cpus
from vmimage.vm.bounded import exit_status, read_all
from vmimage.vm.clone import OVERLAY, SEED, USER, Clone, cloned
from vmimage.vm.machine import SERIAL, Hardware, console_end, qemu_command

GROW_BYTES = 4 << 30
# Longer than dev-env waits itself: what it waited for is then on the console.
CLUSTER_SECONDS = 3300.0
FLUSH_SECONDS = 60.0
CLUSTER_CA = (Path(__file__).parent / "cluster-ca.sh").read_text()
IDENTITIES = {
    "machine-id": "cat /etc/machine-id",
    "host-keys": "cat /etc/ssh/ssh_host_*_key.pub",
    "cluster-ca": CLUSTER_CA,
}
"""What two clones must not share -> the command that prints it, a line each."""
MOST_IDENTITY_BYTES = 64 << 10
TOLD = {22: 2223, 80: 8081, 443: 8444, 6443: 6444, **{port: port for port in range(31000, 31020)}}
"""What a machine is told of ports that lead to it: other ones than the usual, so that a check sees what it believes."""
AT_ONCE = 2
"""At most so many machines run at the same time; `doctor` asks for memory accordingly."""


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """Folders for machines: to work in, and for what is kept of those that fail."""

    work: Path
    kept: Path | None


@dataclass
class Identities:
    """What the clones of one verification are known by."""

    _known: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, machine: str, identity: Mapping[str, list[str]]) -> None:
        """Note what a machine is known by."""
        with self._lock:
            self._known[machine] = dict(identity)

    def shared(self) -> Iterator[str]:
        """Yield what several clones share, or one of them lacks; nothing when each is its own."""
        for name in IDENTITIES:
            lines = [(machine, line) for machine, known in self._known.items() for line in known[name]]
            for line, count in Counter(line for _, line in lines).items():
                if count > 1:
                    yield f"{name} is the same in {', '.join(machine for machine, own in lines if own == line)}"
            without = self._known.keys() - {machine for machine, _ in lines}
            if without and (lines or name != "cluster-ca"):
                yield f"{name}: {', '.join(sorted(without))} has none"

    def __len__(self) -> int:
        return len(self._known)


def check_machine(
    subject: Subject,
    index: int,
    disk: Opened,
    identities: Identities,
    rooms: Rooms,
    accelerator: Accelerator,
    step: Step,
) -> Check:
    """Boot one clone of a file, and run the tests inside it."""
    boot = subject.boots[index]
    check = Check(name=boot.name)
    folder = rooms.work / boot.name
    folder.mkdir()
    hardware = Hardware(
        profile=boot.profile,
        firmware=boot.firmware,
        accelerator=accelerator,
        cpus=machine_cpus(subject.cpus, accelerator),
        memory=size_bytes(subject.memory) >> 20,
        forwards={22: 0},
        told=TOLD,
        throwaway=True,
    )
    try:
        with cloned(disk.path, disk.format, hardware, folder, hostname=f"verify-{index}", grow_by=GROW_BYTES) as clone:
            context = _come_up(clone, check, identities, folder, step)
            context |= {"facts": subject.facts, "firmware": boot.firmware, "hostname": f"verify-{index}"}
            context["forwards"] = TOLD
            files = dealt_tests(subject.facts, index, len(subject.boots), subject.seconds)
            run_tests(check, files, context, _hosts(clone, folder), folder)
            step.now(f"{boot.name}: {check.tests} tests, {len(check.failures)} failed")
            if check.failures and rooms.kept:
                # One that hangs is kept as it is.
                with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                    _flush(clone)
    except HostError:
        raise
    except (VmimageError, OSError, EOFError, paramiko.SSHException, QMPError, ExecuteError) as error:
        check.failures.append(f"{error}\n  its console ends with:{console_end(folder / SERIAL)}")
    finally:
        if check.failures and rooms.kept and (folder / OVERLAY).exists():
            _keep(rooms.kept / boot.name, disk, folder, hardware)
        (folder / OVERLAY).unlink(missing_ok=True)
    return check


def _come_up(clone: Clone, check: Check, identities: Identities, folder: Path, step: Step) -> dict[str, object]:
    """Wait until a clone answers, and ask what it is; returns what its tests are told of it."""
    try:
        step.now(f"boot as {check.name}")
        check.seconds_to_ssh = round(clone.wait_for_ssh(), 1)
        step.now(f"{check.name} answered ssh after {check.seconds_to_ssh:.0f} s")
        identities.add(check.name, _identity(clone))
        agent = clone.machine.operating_system()
    finally:
        clone.machine.screenshot(folder / "screen.png")
    return {"port": clone.port, "grown_by": GROW_BYTES, "seconds_to_ssh": check.seconds_to_ssh, "agent": agent}


def _hosts(clone: Clone, folder: Path) -> list[str]:
    """Return pytest's options that lead testinfra to a clone."""
    config = folder / "ssh_config"
    config.write_text(
        f"Host 127.0.0.1\n  IdentityFile {clone.key.private}\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
    )
    return [f"--hosts=paramiko://{USER}@127.0.0.1:{clone.port}", f"--ssh-config={config}"]


def _flush(clone: Clone) -> None:
    """Let a guest write all it has to its disk."""
    with clone.log_in() as client:
        _, stdout, _ = client.exec_command("sync", timeout=FLUSH_SECONDS)
        exit_status(stdout.channel, FLUSH_SECONDS)


def _keep(folder: Path, disk: Opened, work: Path, hardware: Hardware) -> None:
    """Keep the disk of a machine that failed, and a script that starts it."""
    folder.mkdir(parents=True)
    beneath = folder / f"image.{disk.format}"
    # Its own name for the same bytes: what they belong to may be removed before.
    place(disk.path, beneath)
    kept = keep_disk(work / OVERLAY, (Path(beneath.name), disk.format), folder)
    shutil.copy(work / SEED, folder)
    command = qemu_command(
        replace(hardware, forwards={}), disk=Path(kept.name), seed=Path(SEED), folder=folder, serial="mon:stdio"
    )
    title = f"The machine that failed, as {hardware.profile} ({hardware.firmware}); its console logs dev in."
    write_enter(folder, command, title, ["Ctrl-A X switches it off."])


def _identity(clone: Clone) -> dict[str, list[str]]:
    """Read what two clones must not share."""
    found = {}
    with clone.log_in() as client:
        for name, command in IDENTITIES.items():
            _, stdout, _ = client.exec_command(command, timeout=CLUSTER_SECONDS)
            end = time.monotonic() + CLUSTER_SECONDS
            said = read_all(stdout.channel, stdout.channel.recv, limit=MOST_IDENTITY_BYTES, end=end)
            found[name] = said.decode(errors="replace").splitlines()
    return found
