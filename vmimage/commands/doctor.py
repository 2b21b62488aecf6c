"""`invoke doctor`: everything that a build needs of its host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vmimage.commands.session import session
from vmimage.host import Finding, examine_tool, find_uefi, tools, user_namespaces
from vmimage.util.console import human_bytes
from vmimage.util.errors import HostError
from vmimage.util.settings import Options
from vmimage.vm.accelerator import (
    ACCELERATORS,
    PROBE_SECONDS,
    Accelerator,
    emulates_in_parallel,
    find_accelerator,
    probe_accelerator,
    probe_passed,
)

NEEDED_DISK = 12 << 30
NEEDED_MEMORY = 5 << 30


def examine(cache_folder: Path, accelerator: str | None) -> Iterator[Finding]:
    """Look at everything that a build needs, one finding each."""
    for tool in tools():
        yield examine_tool(tool)
    yield user_namespaces()
    if shutil.which("qemu-system-x86_64"):
        for name in ACCELERATORS:
            yield _accelerator(name)
        chosen = find_accelerator(cache_folder / "accelerator.json", accelerator)
        yield Finding(subject="accelerator", good=True, state=chosen, why="runs the guests of a build")
    try:
        state, good = str(find_uefi().code), True
    except HostError as error:
        state, good = error.message, False
    yield Finding(
        subject="UEFI", good=good, state=state, why="boots the image as UEFI machines do", remedy="apt-get install ovmf"
    )
    free = shutil.disk_usage(cache_folder).free
    yield Finding(
        subject="disk",
        good=free >= NEEDED_DISK,
        state=f"{human_bytes(free)} free at {cache_folder}",
        why=f"a build needs up to {human_bytes(NEEDED_DISK)}",
        remedy="free some, or set VMIMAGE_CACHE to a folder on a larger disk",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(
        subject="memory",
        good=memory >= NEEDED_MEMORY,
        state=human_bytes(memory),
        why=f"two guests run at once; {human_bytes(NEEDED_MEMORY)} suffice",
        remedy="build on a larger machine",
    )


def _accelerator(name: Accelerator) -> Finding:
    done = probe_accelerator(name)
    why = "runs guests at the speed of the host" if name == "kvm" else "runs guests anywhere, by emulation"
    if probe_passed(done):
        state = f"ran guest code in {done.seconds:.1f} s"
        if name == "tcg" and not emulates_in_parallel():
            why += "; a machine's processors one by one (at the same time: QEMU 8.1 or later on x86-64)"
        return Finding(subject=name, good=True, state=state, why=why)
    hung = done.seconds >= PROBE_SECONDS
    state = f"hung: guest code did not end within {PROBE_SECONDS:.0f} s" if hung else done.output.splitlines()[0]
    remedy = "run on the machine itself, or enable nested virtualization; builds work without it"
    return Finding(subject=name, good=False, state=state, why=why, remedy=remedy, needed=name == "tcg")


def examine_host(chosen: Options, *, json: bool) -> None:
    """Print all findings.

    Raises:
        HostError: Something that is needed is missing; all of it is named.
    """
    with session(chosen, json_lines=json) as (console, store):
        bad = []
        for finding in examine(store.root, chosen.accelerator):
            console.event("finding", **vars(finding))
            console.say(f"{finding.mark:<3} {finding.subject:<22} {finding.state:<38} {finding.why}")
            if finding.mark == "BAD":
                bad.append(f"{finding.subject}: {finding.state}\n    {finding.remedy}")
        if bad:
            raise HostError("\n".join(bad), hint="`./bootstrap` installs missing packages")
