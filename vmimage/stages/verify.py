"""Verify: the exported files themselves, booted as their hypervisors do -> a verdict on exactly their bytes.

Each machine runs on a throwaway overlay. `tests/image` runs over ssh inside it (pytest-testinfra), and on the disk
from outside for what must not be there (`test_hygiene.py`).
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import paramiko
from qemu.qmp import ExecuteError, QMPError

from vmimage.accelerator import Accelerator, machine_cpus
from vmimage.checks import DISK_TESTS, Check, dealt_tests, run_tests
from vmimage.console import Step
from vmimage.disk import RawDisk, content_digest
from vmimage.errors import HostError, VerifyError, VmimageError
from vmimage.files import place, sha256_file
from vmimage.formats.opened import Opened, open_disk
from vmimage.kept import ENTER, keep_disk, write_enter
from vmimage.machine import Hardware, make_overlay, qemu_command, start, write_seed
from vmimage.matrix import Boot
from vmimage.run import kill_running, run, tail
from vmimage.spec import FormatName, size_bytes
from vmimage.ssh import connect, make_key, wait_for_ssh

VERDICT = "verdict.json"
USER = "dev"
SSH_SECONDS = {"kvm": 120.0, "tcg": 420.0}
GROW_BYTES = 4 << 30
# Longer than dev-env waits itself: what it waited for is then on the console.
CLUSTER_SECONDS = 3300.0
FLUSH_SECONDS = 60.0
# Made when the cluster first starts; `start` waits for what is starting already.
CLUSTER_CA = """if [ -e /etc/systemd/system/k3s.service ]; then sudo systemctl start dev-env-ready.target
sudo sha256sum /var/lib/rancher/k3s/server/tls/server-ca.crt; fi"""
AT_ONCE = 2
"""Machines that run at the same time; `doctor` asks for memory accordingly."""


@dataclass(frozen=True, kw_only=True)
class File:
    """An exported file; `recorded_sha256` is what its manifest says, if there is one."""

    kind: FormatName
    path: Path
    recorded_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is verified, and what it should be.

    Attributes:
        boots: In which machines the files are booted.
        facts: What the image should say of itself: image, components, versions, build.
        build_key: The public key of its bake, if known.
    """

    files: Sequence[File]
    boots: Sequence[Boot]
    facts: Mapping[str, object]
    memory: str
    cpus: int
    build_key: str = ""


class _Clones:
    """What the machines of one verification must not share; each is compared with those that came up before it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: list[dict[str, str]] = []

    def introduce(self, identity: dict[str, str]) -> list[dict[str, str]]:
        """Add a clone, and return those that were there."""
        with self._lock:
            others = list(self._known)
            self._known.append(identity)
            return others


@dataclass(frozen=True, kw_only=True)
class _Rooms:
    """Folders for machines: to work in, and for what is kept of those that fail."""

    work: Path
    kept: Path | None


def image_facts(disk: RawDisk, work: Path) -> Mapping[str, object]:
    """Read what an image says of itself.

    Raises:
        VerifyError: It says nothing, so vmimage did not make it.
    """
    folder = work / "facts"
    folder.mkdir()
    try:
        facts = json.loads((disk.dump("/etc/vmimage", folder) / "release.json").read_text())
        if not all(isinstance(facts[key], list if key == "components" else dict) for key in ("components", "versions")):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, VmimageError) as error:
        raise VerifyError(
            "the image has no readable /etc/vmimage/release.json, so it is not known what it should contain",
            hint="verify images that vmimage built",
        ) from error
    return dict(facts)


def verify(
    subject: Subject,
    work: Path,
    accelerator: Accelerator,
    step: Step,
    *,
    evidence: Path | None = None,
    keep: Path | None = None,
) -> Mapping[str, object]:
    """Check files, leave verdict.json, JUnit files, consoles and screenshots in `work`, return the verdict.

    Args:
        evidence: Where to copy what was seen when the verdict is bad.
        keep: Where the disk of a machine that failed goes, ready to be opened.

    Raises:
        VerifyError: The verdict is bad, with the reasons.
    """
    started = datetime.now(UTC)
    step.now("read the files")
    digests = {file.kind: require_recorded(file) for file in subject.files}
    disks = {file.kind: opened_disk(file, work) for file in subject.files}
    clones = _Clones()
    rooms = _Rooms(work=work, kept=keep)
    with ThreadPoolExecutor(max_workers=AT_ONCE) as machines, ThreadPoolExecutor(max_workers=1) as beside:
        on_disk = beside.submit(_check_disks, subject, disks, work, step)
        in_machines = [
            machines.submit(_check_machine, subject, index, disks[boot.kind], clones, rooms, accelerator, step)
            for index, boot in enumerate(subject.boots)
        ]
        try:
            checks = [on_disk.result(), *(future.result() for future in in_machines)]
        except BaseException:
            # Ctrl-C, or an error: no machine is waited for.
            machines.shutdown(wait=False, cancel_futures=True)
            kill_running()
            raise
    for kind in disks:
        shutil.rmtree(work / f"disk-{kind}")
    changed = [file.path.name for file in subject.files if sha256_file(file.path) != digests[file.kind]]
    verdict: dict[str, object] = {
        "image": subject.facts["image"],
        "build": subject.facts.get("build"),
        "passed": not changed and all(check.passed for check in checks),
        "unchanged": not changed,
        "accelerator": accelerator,
        "started": started.isoformat(timespec="seconds"),
        "files": {
            file.kind: {"name": file.path.name, "bytes": file.path.stat().st_size, "sha256": digests[file.kind]}
            for file in subject.files
        },
        "checks": [{**asdict(check), "passed": check.passed} for check in checks],
    }
    (work / VERDICT).write_text(json.dumps(verdict, indent=2) + "\n")
    if not verdict["passed"]:
        if evidence:
            shutil.copytree(work, evidence, dirs_exist_ok=True)
        reasons = [f"{check.name}: {reason}" for check in checks if not check.passed
                   for reason in check.failures or ["ran no test"]]  # fmt: skip
        reasons += [f"{name} changed while it was verified" for name in changed]
        found = [f"verdict, consoles and screenshots: {evidence}"] if evidence else []
        if keep:
            found += [f"look inside: {script}" for script in sorted(keep.glob(f"*/{ENTER}"))]
        raise VerifyError(
            f"{subject.facts['image']} failed verification:\n" + "\n".join(f"  {reason}" for reason in reasons),
            hint="\n".join(found),
        )
    times = ", ".join(f"{check.name} {check.seconds_to_ssh:.0f} s" for check in checks if check.seconds_to_ssh)
    step.outcome = f"{sum(check.tests for check in checks)} checks passed; ssh after: {times}"
    return verdict


def require_recorded(file: File) -> str:
    """Return a file's SHA-256.

    Raises:
        VerifyError: It is another than its manifest says.
    """
    digest = sha256_file(file.path)
    if file.recorded_sha256 not in ("", digest):
        raise VerifyError(
            f"{file.path.name} is not what its manifest says\n"
            f"    manifest {file.recorded_sha256}\n    found    {digest}",
            hint="download or build it again",
        )
    return digest


def opened_disk(file: File, work: Path) -> Opened:
    """Open a file as its hypervisor would, in a folder of its own below `work`.

    Raises:
        VerifyError: It is refused, with the reason.
    """
    folder = work / f"disk-{file.kind}"
    folder.mkdir()
    try:
        return open_disk(file.kind, file.path, folder)
    except (ValueError, OSError) as error:
        raise VerifyError(f"{file.path.name} is refused: {error}", hint="download or build it again") from error


def _check_disks(subject: Subject, disks: Mapping[FormatName, Opened], work: Path, step: Step) -> Check:
    """Run the tests that look at the disk from outside on the first file, and compare the others' disks with it."""
    check = Check(name="disk")
    folder = work / "disk"
    folder.mkdir()
    raw = folder / "disk.raw"
    first = ""
    for kind, disk in disks.items():
        run(["qemu-img", "convert", "-f", disk.format, "-O", "raw", disk.path, raw], error=VerifyError)
        content = content_digest(raw)
        if not first:
            first = content
            context = {"facts": subject.facts, "raw_disk": str(raw), "build_key": subject.build_key}
            run_tests(check, DISK_TESTS, context, [], folder)
        elif content != first:
            check.failures.append(f"the disk in the {kind} is another than that in the {next(iter(disks))}")
        raw.unlink()
    step.now(f"disk: {check.tests} tests, {len(check.failures)} failed")
    return check


def _check_machine(
    subject: Subject,
    index: int,
    disk: Opened,
    clones: _Clones,
    rooms: _Rooms,
    accelerator: Accelerator,
    step: Step,
) -> Check:
    """Boot one clone of a file, and run the tests inside it."""
    boot = subject.boots[index]
    tests = dealt_tests(subject.facts, index, len(subject.boots))
    check = Check(name=boot.name)
    folder = rooms.work / boot.name
    folder.mkdir()
    key = make_key(folder)
    seed, overlay = folder / "seed.iso", folder / "overlay.qcow2"
    hostname = f"verify-{index}"
    write_seed(seed, public_keys=[key.public], hostname=hostname, instance_id=f"{hostname}-{secrets.token_hex(4)}")
    hardware = Hardware(
        profile=boot.profile,
        firmware=boot.firmware,
        accelerator=accelerator,
        cpus=machine_cpus(subject.cpus, accelerator, machines=AT_ONCE),
        memory=size_bytes(subject.memory) >> 20,
        forwards={22: 0},
        throwaway=True,
    )
    try:
        make_overlay(disk.path, disk.format, overlay, grow_by=GROW_BYTES)
        with start(hardware, disk=overlay, seed=seed, folder=folder) as machine:
            booted = time.monotonic()
            try:
                port = machine.port(22)
                step.now(f"boot as {boot.name}")
                wait_for_ssh(port, USER, key.private, timeout=SSH_SECONDS[accelerator], alive=machine.alive)
                check.seconds_to_ssh = round(time.monotonic() - booted, 1)
                step.now(f"{boot.name} answered ssh after {check.seconds_to_ssh:.0f} s")
                siblings = clones.introduce(_identity(port, key.private))
                agent = machine.operating_system()
            finally:
                machine.screenshot(folder / "screen.png")
            context = {
                "facts": subject.facts,
                "firmware": boot.firmware,
                "hostname": hostname,
                "port": port,
                "grown_by": GROW_BYTES,
                "seconds_to_ssh": check.seconds_to_ssh,
                "siblings": siblings,
                "agent": agent,
            }
            config = folder / "ssh_config"
            config.write_text(
                f"Host 127.0.0.1\n  IdentityFile {key.private}\n"
                "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
            )
            hosts = [f"--hosts=paramiko://{USER}@127.0.0.1:{port}", f"--ssh-config={config}"]
            run_tests(check, tests, context, hosts, folder)
            step.now(f"{boot.name}: {check.tests} tests, {len(check.failures)} failed")
            if check.failures and rooms.kept:
                # One that hangs is kept as it is.
                with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                    _flush(port, key.private)
    except HostError:
        raise
    except (VmimageError, OSError, EOFError, paramiko.SSHException, QMPError, ExecuteError) as error:
        serial = folder / "serial.log"
        console = serial.read_text(errors="replace") if serial.exists() else ""
        check.failures.append(f"{error}\n  its console ends with:{tail(console)}")
    finally:
        if check.failures and rooms.kept and overlay.exists():
            _keep(rooms.kept / boot.name, disk, overlay, seed, hardware)
        overlay.unlink(missing_ok=True)
        key.private.unlink()
    return check


def _flush(port: int, key: Path) -> None:
    """Let a guest write all it has to its disk."""
    with connect(port, USER, key) as client:
        _, stdout, _ = client.exec_command("sync", timeout=FLUSH_SECONDS)
        stdout.channel.recv_exit_status()


def _keep(folder: Path, disk: Opened, overlay: Path, seed: Path, hardware: Hardware) -> None:
    """Keep the disk of a machine that failed, and a script that starts it."""
    folder.mkdir(parents=True)
    beneath = folder / f"image.{disk.format}"
    # Its own name for the same bytes: what they belong to may be removed before.
    place(disk.path, beneath)
    kept = keep_disk(overlay, (Path(beneath.name), disk.format), folder)
    shutil.copy(seed, folder)
    command = qemu_command(
        replace(hardware, forwards={}), disk=Path(kept.name), seed=Path(seed.name), folder=folder, serial="mon:stdio"
    )
    title = f"The machine that failed, as {hardware.profile} ({hardware.firmware}); its console logs dev in."
    write_enter(folder, command, title, ["Ctrl-A X switches it off."])


def _identity(port: int, key: Path) -> dict[str, str]:
    """Read what two clones must not share."""
    found = {}
    with connect(port, USER, key) as client:
        for name, command in (
            ("machine-id", "cat /etc/machine-id"),
            ("host-keys", "cat /etc/ssh/ssh_host_*_key.pub"),
            ("cluster-ca", CLUSTER_CA),
        ):
            _, stdout, _ = client.exec_command(command, timeout=CLUSTER_SECONDS)
            found[name] = stdout.read().decode().strip()
    return found
