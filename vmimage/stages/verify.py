"""Verify: the exported file itself, booted as it will be used -> a verdict on exactly its bytes.

Each machine runs on a throwaway overlay. `tests/image` runs over ssh inside it (pytest-testinfra), and on the disk
from outside for what must not be there (`test_hygiene.py`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

from vmimage import PROJECT
from vmimage.console import Step
from vmimage.disk import RawDisk
from vmimage.errors import HostError, VerifyError, VmimageError
from vmimage.host import Accelerator
from vmimage.machine import Hardware, make_overlay, start, write_seed
from vmimage.profiles import FIRMWARES, FirmwareName
from vmimage.run import run, tail
from vmimage.spec import size_bytes
from vmimage.ssh import connect, make_key, wait_for_ssh
from vmimage.store import sha256_file

VERDICT = "verdict.json"
USER = "dev"
SSH_SECONDS = {"kvm": 120.0, "tcg": 420.0}
TEST_SECONDS = 1800.0
GROW_BYTES = 4 << 30
DISK_TESTS = ("test_hygiene.py",)
MACHINE_TESTS = ("test_machine.py",)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is verified, and what it should be.

    Attributes:
        facts: What the image should say of itself: image, components, versions, build.
        build_key: The public key of its bake, if known.
        recorded_sha256: What the file's manifest says, if there is one.
    """

    file: Path
    format: str
    facts: Mapping[str, object]
    memory: str
    cpus: int
    build_key: str = ""
    recorded_sha256: str = ""


@dataclass(kw_only=True)
class Check:
    """The outcome of one test session: on the disk, or in one machine."""

    machine: str
    firmware: str = ""
    seconds_to_ssh: float | None = None
    tests: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """A session without tests proves nothing."""
        return self.tests > 0 and not self.failures


def test_files(facts: Mapping[str, object]) -> list[str]:
    """Return the files of tests/image that run inside machines: one for each component."""
    components = facts.get("components", [])
    assert isinstance(components, Sequence)  # noqa: S101 - release.json, checked by image_facts
    return [*MACHINE_TESTS, *(f"test_{component}.py" for component in components)]


def dealt_tests(facts: Mapping[str, object], machine: int, machines: int) -> list[str]:
    """Return the files to run in one of some machines: those about machines in each, a component in one of them."""
    tests = test_files(facts)
    own = len(MACHINE_TESTS)
    return [*tests[:own], *tests[own:][machine::machines]]


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
    subject: Subject, work: Path, accelerator: Accelerator, step: Step, *, keep: Path | None = None
) -> Mapping[str, object]:
    """Check a file, leave verdict.json, JUnit files, consoles and screenshots in `work`, return the verdict.

    Args:
        keep: Where to copy the evidence when the verdict is bad.

    Raises:
        VerifyError: The verdict is bad, with the reasons.
    """
    started = datetime.now(UTC)
    step.now("read the file")
    digest = sha256_file(subject.file)
    if subject.recorded_sha256 not in ("", digest):
        raise VerifyError(
            f"{subject.file.name} is not what its manifest says\n"
            f"    manifest {subject.recorded_sha256}\n    found    {digest}",
            hint="download or build it again",
        )
    identities: dict[FirmwareName, Future[dict[str, str]]] = {firmware: Future() for firmware in FIRMWARES}
    with ThreadPoolExecutor(max_workers=len(FIRMWARES) + 1) as pool:
        on_disk = pool.submit(_check_disk, subject, work, step)
        in_machines = [
            pool.submit(_check_machine, subject, firmware, identities, work, accelerator, step)
            for firmware in FIRMWARES
        ]
        checks = [on_disk.result(), *(future.result() for future in in_machines)]
    unchanged = sha256_file(subject.file) == digest
    verdict: dict[str, object] = {
        "file": subject.file.name,
        "sha256": digest,
        "bytes": subject.file.stat().st_size,
        "image": subject.facts["image"],
        "build": subject.facts.get("build"),
        "passed": unchanged and all(check.passed for check in checks),
        "unchanged": unchanged,
        "accelerator": accelerator,
        "started": started.isoformat(timespec="seconds"),
        "checks": [{**asdict(check), "passed": check.passed} for check in checks],
    }
    (work / VERDICT).write_text(json.dumps(verdict, indent=2) + "\n")
    if not verdict["passed"]:
        if keep:
            shutil.copytree(work, keep, dirs_exist_ok=True)
        reasons = [
            f"{check.machine}: {reason}"
            for check in checks
            for reason in check.failures or ["ran no test"]
            if not check.passed
        ]
        reasons += [] if unchanged else ["the file changed while it was verified"]
        raise VerifyError(
            f"{subject.file.name} failed verification:\n" + "\n".join(f"  {reason}" for reason in reasons),
            hint=f"verdict, consoles and screenshots: {keep}" if keep else "",
        )
    times = ", ".join(
        f"{check.firmware} ssh after {check.seconds_to_ssh:.0f} s" for check in checks if check.seconds_to_ssh
    )
    step.outcome = f"{sum(check.tests for check in checks)} checks passed; {times}"
    return verdict


def machine_cpus(wanted: int, accelerator: Accelerator) -> int:
    """Return how many processors a machine gets: emulated ones beyond the host's own only wait for each other."""
    share = max(1, (os.cpu_count() or 1) // len(FIRMWARES))
    return wanted if accelerator == "kvm" else min(wanted, share)


def _check_disk(subject: Subject, work: Path, step: Step) -> Check:
    """Run the tests that look at the disk from outside."""
    check = Check(machine="disk")
    folder = work / "disk"
    folder.mkdir()
    raw = folder / "disk.raw"
    run(["qemu-img", "convert", "-f", subject.format, "-O", "raw", subject.file, raw], error=VerifyError)
    context = {"facts": subject.facts, "raw_disk": str(raw), "build_key": subject.build_key}
    _run_tests(DISK_TESTS, context, [], folder, check, step)
    raw.unlink()
    return check


def _check_machine(
    subject: Subject,
    firmware: FirmwareName,
    identities: Mapping[FirmwareName, Future[dict[str, str]]],
    work: Path,
    accelerator: Accelerator,
    step: Step,
) -> Check:
    """Boot one clone of the file, and run the tests inside it."""
    check = Check(machine=f"virtio-{firmware}", firmware=firmware)
    folder = work / check.machine
    folder.mkdir()
    key = make_key(folder)
    seed, overlay = folder / "seed.iso", folder / "overlay.qcow2"
    name = f"verify-{firmware}"
    write_seed(seed, public_keys=[key.public], hostname=name, instance_id=f"{name}-{secrets.token_hex(4)}")
    hardware = Hardware(
        firmware=firmware,
        accelerator=accelerator,
        cpus=machine_cpus(subject.cpus, accelerator),
        memory=size_bytes(subject.memory) >> 20,
        forwards={22: 0},
    )
    try:
        make_overlay(subject.file, subject.format, overlay, grow_by=GROW_BYTES)
        with start(hardware, disk=overlay, seed=seed, folder=folder) as machine:
            booted = time.monotonic()
            try:
                port = machine.port(22)
                step.now(f"boot as {check.machine}")
                wait_for_ssh(port, USER, key.private, timeout=SSH_SECONDS[accelerator], alive=machine.alive)
                check.seconds_to_ssh = round(time.monotonic() - booted, 1)
                step.now(f"{check.machine} answered ssh after {check.seconds_to_ssh:.0f} s")
                identities[firmware].set_result(_identity(port, key.private))
                siblings = [identities[other].result() for other in identities if other != firmware]
            finally:
                if not identities[firmware].done():
                    identities[firmware].set_result({})
                machine.screenshot(folder / "screen.png")
            context = {
                "facts": subject.facts,
                "firmware": firmware,
                "hostname": name,
                "port": port,
                "grown_by": GROW_BYTES,
                "seconds_to_ssh": check.seconds_to_ssh,
                "siblings": siblings,
            }
            config = folder / "ssh_config"
            config.write_text(
                f"Host 127.0.0.1\n  IdentityFile {key.private}\n"
                "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
            )
            hosts = [f"--hosts=paramiko://{USER}@127.0.0.1:{port}", f"--ssh-config={config}"]
            tests = dealt_tests(subject.facts, FIRMWARES.index(firmware), len(FIRMWARES))
            _run_tests(tests, context, hosts, folder, check, step)
    except HostError:
        raise
    except (VmimageError, OSError) as error:
        serial = folder / "serial.log"
        console = serial.read_text(errors="replace") if serial.exists() else ""
        check.failures.append(f"{error}\n  its console ends with:{tail(console)}")
    finally:
        if not identities[firmware].done():
            identities[firmware].set_result({})
        overlay.unlink(missing_ok=True)
        key.private.unlink()
    return check


def _identity(port: int, key: Path) -> dict[str, str]:
    """Read what two clones must not share."""
    found = {}
    with connect(port, USER, key) as client:
        for name, command in (("machine-id", "cat /etc/machine-id"), ("host-keys", "cat /etc/ssh/ssh_host_*_key.pub")):
            _, stdout, _ = client.exec_command(command, timeout=60)
            found[name] = stdout.read().decode().strip()
    return found


def _run_tests(
    files: Sequence[str], context: Mapping[str, object], hosts: Sequence[str], folder: Path, check: Check, step: Step
) -> None:
    """Run files of tests/image in a pytest of their own, and read what it reports."""
    junit, context_file = folder / "junit.xml", folder / "context.json"
    context_file.write_text(json.dumps(context, indent=2))
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-o",
        "filterwarnings=default",
        "-v",
        "--tb=short",
    ]
    argv += [f"--context={context_file}", f"--junitxml={junit}", "-o", f"junit_suite_name={check.machine}", *hosts]
    paths = [str(PROJECT / "tests" / "image" / file) for file in files]
    done = run([*argv, *paths], cwd=PROJECT, timeout=TEST_SECONDS, check=False)
    read_junit(junit, check)
    if done.returncode and not check.failures:
        check.failures.append(f"pytest ended with status {done.returncode}:{tail(done.output)}")
    step.now(f"{check.machine}: {check.tests} tests, {len(check.failures)} failed")


def read_junit(path: Path, check: Check) -> None:
    """Read counts and failures of a JUnit file that pytest wrote; no file means that nothing ran."""
    if not path.exists():
        return
    for case in ET.parse(path).getroot().iter("testcase"):  # noqa: S314 - our own pytest wrote it
        check.tests += 1
        check.skipped += case.find("skipped") is not None
        for kind in ("failure", "error"):
            problem = case.find(kind)
            if problem is not None:
                text = (problem.text or problem.get("message") or "").strip()
                said = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()
                check.failures.append(f"{case.get('name')}:{tail(chr(10).join(said), 8)}")
