"""What runs the guests: KVM where it really works, else QEMU's emulation; and what a machine is given accordingly."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from vmimage.host import tool_version, version_tuple
from vmimage.util.errors import HostError, InputError
from vmimage.util.memo import Memo
from vmimage.util.run import Completed, run

Accelerator = Literal["kvm", "tcg"]
ACCELERATORS: tuple[Accelerator, ...] = ("kvm", "tcg")

# x86-64-v2 on an AMD processor: with `max`, emulation pays for AVX and for more of the kernel's mitigations. Without
# svm, which hypervisors seldom pass on: a guest that sees it loads KVM.
EMULATED_CPU = "qemu64,+cx16,+lahf-lm,+popcnt,+sse4.1,+sse4.2,+ssse3,-svm"

# Before, code that one processor translates while another patches it may stay as it was: a kernel, which patches its
# own, crashes now and then. https://gitlab.com/qemu-project/qemu/-/commit/deba78709ae8ce103e2248413857747f804cd1ef
PARALLEL_SINCE = (8, 1)


def emulates_in_parallel() -> bool:
    """Tell whether QEMU can emulate the processors of a machine at the same time.

    Not on processors that order memory accesses otherwise than x86 does: https://www.qemu.org/docs/master/devel/multi-thread-tcg.html
    """
    return platform.machine() == "x86_64" and version_tuple(tool_version("qemu-system-x86_64")) >= PARALLEL_SINCE


def acceleration(accelerator: Accelerator) -> str:
    """Return QEMU's `-accel` for an accelerator."""
    if accelerator == "kvm":
        return "kvm"
    return f"tcg,thread={'multi' if emulates_in_parallel() else 'single'}"


def cpu_model(accelerator: Accelerator) -> str:
    """Return QEMU's `-cpu` for an accelerator."""
    return "host" if accelerator == "kvm" else EMULATED_CPU


def machine_cpus(wanted: int, accelerator: Accelerator) -> int:
    """Return how many processors a machine gets: emulated ones beyond the host's own only wait for each other."""
    if accelerator == "kvm":
        return wanted
    return min(wanted, os.cpu_count() or 1) if emulates_in_parallel() else 1


def machines_at_once(wanted: int, accelerator: Accelerator, *, most: int) -> int:
    """Return how many machines run at the same time, so that each has the processors that it asks for.

    A cluster that shares one emulated processor with another never comes up: its probes time out, and start it again.

    Args:
        wanted: Processors of each.
        most: However many the host has.
    """
    if accelerator == "kvm" or not emulates_in_parallel():
        return most
    return max(1, min(most, (os.cpu_count() or 1) // wanted))


PROBE_EXIT = 0x2A
PROBE_SECONDS = 10.0

# A boot sector that counts to 50 million in a register and leaves through QEMU's isa-debug-exit device:
#   cli; mov ecx, 50000000; again: dec ecx; jnz again; mov al, PROBE_EXIT; out 0xf4, al; halt: hlt; jmp halt
_PROBE_CODE = b"\xfa\x66\xb9" + (50_000_000).to_bytes(4, "little") + b"\x66\x49\x75\xfc\xb0" + bytes([PROBE_EXIT])
PROBE_SECTOR = (_PROBE_CODE + b"\xe6\xf4\xf4\xeb\xfd").ljust(510, b"\0") + b"\x55\xaa"


def probe_accelerator(name: Accelerator) -> Completed:
    """Run guest code under an accelerator and time it.

    `/dev/kvm` proves nothing: in many nested set-ups it opens, and then the guest hangs.

    Returns:
        The finished QEMU; `(PROBE_EXIT << 1) | 1` as its status means that the guest code ran to its end.
    """
    with TemporaryDirectory(prefix="vmimage-probe-") as folder:
        sector = Path(folder, "probe.img")
        sector.write_bytes(PROBE_SECTOR)
        argv = ["qemu-system-x86_64", "-accel", name, "-machine", "pc", "-m", "64", "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", "-drive", f"file={str(sector).replace(',', ',,')},format=raw,if=ide,readonly=off"]
        argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        return run(argv, check=False, timeout=PROBE_SECONDS)


def probe_passed(done: Completed) -> bool:
    """Tell whether a probe's guest ran to its end."""
    return done.returncode == (PROBE_EXIT << 1) | 1


def known_accelerator(name: str) -> Accelerator:
    """Return the accelerator of a name that a user gave.

    Raises:
        InputError: There is none.
    """
    for known in ACCELERATORS:
        if known == name:
            return known
    raise InputError(f"--accelerator {name}: unknown", hint=f"one of {', '.join(ACCELERATORS)}")


def find_accelerator(memory: Path, override: str | None = None) -> Accelerator:
    """Return the accelerator to use: the override, else the first that runs guest code.

    Args:
        memory: A file that remembers the answer until the next boot of the host or another QEMU.

    Raises:
        InputError: The override is no accelerator.
        HostError: Not even TCG runs a guest.
    """
    if override:
        return known_accelerator(override)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    stamp = [boot_id, tool_version("qemu-system-x86_64"), usable, os.geteuid()]
    answers = Memo(memory)
    found = answers.get("accelerator", stamp, lambda: _working_accelerator(kvm=usable))
    # What somebody wrote there instead is asked again.
    return next((known for known in ACCELERATORS if known == found), None) or _working_accelerator(kvm=usable)


def _working_accelerator(*, kvm: bool) -> Accelerator:
    for name in ACCELERATORS:
        if (name == "tcg" or kvm) and probe_passed(probe_accelerator(name)):
            return name
    raise HostError("QEMU runs no guest code on this host, not even by emulation", hint="run `invoke doctor`")
