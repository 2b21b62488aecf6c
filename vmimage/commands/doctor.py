"""`invoke doctor`: everything that a build needs of its host."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vmimage.commands.session import session
from vmimage.host import Finding, examine_tool, find_uefi, tools, user_namespaces
from vmimage.spec.load import load_spec
from vmimage.spec.model import size_bytes
from vmimage.stages.verify.machine import AT_ONCE
from vmimage.util.confine import shuts_in
from vmimage.util.console import human_bytes
from vmimage.util.errors import HostError, VmimageError
from vmimage.util.locks import lock_file
from vmimage.util.run import run
from vmimage.util.settings import Options
from vmimage.vm.accelerator import (
    ACCELERATORS,
    PROBE_SECONDS,
    Accelerator,
    emulates_in_parallel,
    find_accelerator,
    known_accelerator,
    probe_accelerator,
    probe_passed,
)
from vmimage.vm.sandbox import sandbox_arguments

log = logging.getLogger(__name__)

NEEDED_DISK = 12 << 30
OWN_MEMORY = 1 << 30
"""For a build beside its machines."""
REMOTE = "afs ceph cifs coda fuseblk gfs/gfs2 gpfs kafs lustre nfs smb smb2 v9fs"
"""What `stat --file-system` calls file systems that others may hold, and whose locks they have to keep."""


def examine(options: Options, cache_folder: Path) -> Iterator[Finding]:
    """Examine everything that a build needs, and yield a finding for each; a failed examination is a finding, too."""
    emulators: list[tuple[str, Callable[[], Finding]]] = []
    if shutil.which("qemu-system-x86_64"):
        emulators = [*((name, partial(_accelerator, name)) for name in ACCELERATORS), ("QEMU's sandbox", _sandbox)]
    looks: list[tuple[str, Callable[[], Finding]]] = [
        *((tool.program or tool.package, partial(examine_tool, tool)) for tool in tools()),
        ("user namespaces", user_namespaces),
        ("confinement", _confinement),
        *emulators,
        ("accelerator", lambda: _chosen(cache_folder, options.accelerator)),
        ("UEFI", _firmware),
        ("disk", lambda: _disk(cache_folder)),
        ("cache", lambda: _file_system(cache_folder)),
        ("memory", lambda: _memory(options.spec)),
    ]
    for subject, look in looks:
        try:
            yield look()
        except VmimageError as error:
            yield Finding(subject=subject, good=False, state=error.message, why="", remedy=error.hint)
        except Exception as error:  # a report of all that is wrong does not end at the first
            log.exception("%s", subject)
            yield Finding(subject=subject, good=False, state=f"{type(error).__name__}: {error}", why="")


def _chosen(cache_folder: Path, accelerator: str | None) -> Finding:
    chosen = find_accelerator(cache_folder / "accelerator.json", accelerator)
    return Finding(subject="accelerator", good=True, state=chosen, why="runs the guests of a build")


def _firmware() -> Finding:
    state, good = "", True
    try:
        state = str(find_uefi().code)
    except HostError as error:
        state, good = error.message, False
    return Finding(
        subject="UEFI", good=good, state=state, why="boots the image as UEFI machines do", remedy="apt-get install ovmf"
    )


def _disk(cache_folder: Path) -> Finding:
    free = shutil.disk_usage(cache_folder).free
    return Finding(
        subject="disk",
        good=free >= NEEDED_DISK,
        state=f"{human_bytes(free)} free at {cache_folder}",
        why=f"a build needs up to {human_bytes(NEEDED_DISK)}",
        remedy="free some, or set VMIMAGE_CACHE to a folder on a larger disk",
    )


def _file_system(cache_folder: Path) -> Finding:
    """Look whether the cache is on this host, and has locks."""
    path = cache_folder / "locks" / f"doctor-{os.getpid()}"
    lock = lock_file(path, fcntl.LOCK_EX)
    assert lock  # noqa: S101 - it waited
    with lock:
        path.unlink()
    kind = run(["stat", "--file-system", "--format=%T", cache_folder], error=HostError, timeout=20).output.strip()
    return Finding(
        subject="cache",
        good=kind not in REMOTE.split(),
        state=f"{kind}, with locks",
        why="keeps results; on a network file system builds are slow, and locks are as good as its server",
        remedy="set VMIMAGE_CACHE to a folder on a disk of this host",
        needed=False,
    )


def _memory(spec: Path) -> Finding:
    """Compare this host's memory with what the machines of verify are given; one at a time is the least."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    images = load_spec(spec).images.values()
    machine = max(size_bytes(image.machine.memory) for image in images)
    wanted = AT_ONCE * machine + OWN_MEMORY
    return Finding(
        subject="memory",
        good=memory >= wanted,
        state=human_bytes(memory),
        why=f"verify runs up to {AT_ONCE} machines of {human_bytes(machine)} at once: "
        f"{human_bytes(wanted)} with the build",
        remedy="build on a larger machine, or give the image less memory in images.yaml",
        needed=memory < machine + OWN_MEMORY,
    )


def _confinement() -> Finding:
    good = shuts_in()
    return Finding(
        subject="confinement",
        good=good,
        state="namespaces and limits" if good else "limits only",
        why="keeps programs that read foreign disks from writing elsewhere and from networks",
        remedy="allow user namespaces to this user, or in this container; builds work without them",
        needed=False,
    )


def _sandbox() -> Finding:
    good = bool(sandbox_arguments())
    return Finding(
        subject="QEMU's sandbox",
        good=good,
        state="works" if good else "does not work",
        why="lets QEMU start no program, whatever its guest does",
        remedy="install a QEMU with seccomp, or allow seccomp filters in this container; builds work without it",
        needed=False,
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
    said = done.output.strip().splitlines() or [f"exit status {done.returncode}"]
    state = f"hung: guest code did not end within {PROBE_SECONDS:.0f} s" if hung else said[0]
    remedy = "run on the machine itself, or enable nested virtualization; builds work without it"
    return Finding(subject=name, good=False, state=state, why=why, remedy=remedy, needed=name == "tcg")


def examine_host(chosen: Options, *, json: bool) -> None:
    """Print all findings.

    Raises:
        HostError: Something that is needed is missing; all of it is named.
    """
    with session(chosen, json_lines=json) as (console, store):
        bad = []
        if chosen.accelerator:
            known_accelerator(chosen.accelerator)
        for finding in examine(chosen, store.root):
            console.event("finding", **vars(finding))
            console.say(f"{finding.mark:<3} {finding.subject:<22} {finding.state:<38} {finding.why}")
            if finding.mark == "BAD":
                bad.append(f"{finding.subject}: {finding.state}\n    {finding.remedy}")
        if bad:
            raise HostError("\n".join(bad), hint="`./bootstrap` installs missing packages")
