"""Verify: the exported files themselves, booted as their hypervisors do -> a verdict on exactly their bytes.

Each machine runs on a throwaway overlay. `tests/image` runs over ssh inside it (pytest-testinfra), and on the disk
from outside for what must not be there (`test_hygiene.py`). Once all are up, no two may share an identity.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from vmimage.disk.raw import content_digest
from vmimage.formats.format import Opened, write_raw
from vmimage.stages.kept import ENTER
from vmimage.stages.verify.checks import DISK_TESTS, Check, run_tests
from vmimage.stages.verify.machine import AT_ONCE, Identities, Rooms, check_machine
from vmimage.stages.verify.subject import VERDICT, Subject, opened_disk, require_recorded
from vmimage.util.console import Step
from vmimage.util.errors import VerifyError
from vmimage.util.files import sha256_file
from vmimage.util.run import kill_running
from vmimage.vm.accelerator import Accelerator, machines_at_once

END_SECONDS = 0.1


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
    checks = _checks(subject, Rooms(work=work, kept=keep), accelerator, step)
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
        raise _bad(subject, checks, changed, evidence, keep)
    times = ", ".join(f"{check.name} {check.seconds_to_ssh:.0f} s" for check in checks if check.seconds_to_ssh)
    step.outcome = f"{sum(check.tests for check in checks)} checks passed; ssh after: {times}"
    return verdict


def _checks(subject: Subject, rooms: Rooms, accelerator: Accelerator, step: Step) -> list[Check]:
    """Look at the disks, boot all machines, and compare what the clones are known by."""
    disks = {file.kind: opened_disk(file, rooms.work) for file in subject.files}
    identities = Identities()
    ending = threading.Event()
    at_once = machines_at_once(subject.cpus, accelerator, most=AT_ONCE)
    with ThreadPoolExecutor(max_workers=at_once) as machines, ThreadPoolExecutor(max_workers=1) as beside:
        on_disk = beside.submit(_check_disks, subject, disks, rooms.work, step, ending)
        in_machines = [
            machines.submit(check_machine, subject, index, disks[boot.kind], identities, rooms, accelerator, step)
            for index, boot in enumerate(subject.boots)
        ]
        try:
            checks = [on_disk.result(), *(future.result() for future in in_machines)]
        except BaseException:
            # Ctrl-C, or an error: no machine is waited for, and no reading of a disk.
            ending.set()
            machines.shutdown(wait=False, cancel_futures=True)
            _end([on_disk, *in_machines])
            raise
    for kind in disks:
        shutil.rmtree(rooms.work / f"disk-{kind}")
    return [*checks, _check_clones(identities, len(subject.boots))]


def _end(futures: Sequence[Future[Check]]) -> None:
    """Kill what checks run until they have ended: one may start a process after the first time."""
    while not all(future.done() for future in futures):
        kill_running()
        wait(futures, timeout=END_SECONDS)


def _check_clones(identities: Identities, machines: int) -> Check:
    """Compare what the clones are known by: no two may share anything."""
    check = Check(name="clones", tests=1, failures=list(identities.shared()))
    if len(identities) < max(machines, 2):
        check.failures.append(f"{len(identities)} of {max(machines, 2)} clones told what they are known by")
    return check


def _bad(
    subject: Subject, checks: Sequence[Check], changed: Sequence[str], evidence: Path | None, keep: Path | None
) -> VerifyError:
    """Return the error that says why a verdict is bad, and where to look."""
    reasons = [f"{check.name}: {reason}" for check in checks if not check.passed
               for reason in check.failures or ["ran no test"]]  # fmt: skip
    reasons += [f"{name} changed while it was verified" for name in changed]
    found = [f"verdict, consoles and screenshots: {evidence}"] if evidence else []
    if keep:
        found += [f"look inside: {script}" for script in sorted(keep.glob(f"*/{ENTER}"))]
    return VerifyError(
        f"{subject.facts['image']} failed verification:\n" + "\n".join(f"  {reason}" for reason in reasons),
        hint="\n".join(found),
    )


def _check_disks(
    subject: Subject, disks: Mapping[str, Opened], work: Path, step: Step, ending: threading.Event
) -> Check:
    """Run the tests that look at the disk from outside on the first file, and compare the others' disks with it.

    Args:
        ending: Is set when nobody waits for it any more.
    """

    def go_on() -> None:
        if ending.is_set():
            raise VerifyError("stopped")

    check = Check(name="disk")
    folder = work / "disk"
    folder.mkdir()
    raw = folder / "disk.raw"
    first = ""
    for kind, disk in disks.items():
        go_on()
        write_raw(disk, raw)
        content = content_digest(raw, between=go_on)
        if not first:
            first = content
            context = {"facts": subject.facts, "raw_disk": str(raw), "build_key": subject.build_key}
            run_tests(check, DISK_TESTS, context, [], folder)
        elif content != first:
            check.failures.append(f"the disk in the {kind} is another than that in the {next(iter(disks))}")
        raw.unlink()
    step.now(f"disk: {check.tests} tests, {len(check.failures)} failed")
    return check
