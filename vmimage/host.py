"""What this host can do: tools and their versions, the accelerator that really works, firmware, free disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from vmimage import PROJECT
from vmimage.console import human_bytes
from vmimage.errors import HostError, InputError
from vmimage.memo import Memo, stamps
from vmimage.run import Completed, Confine, confined, run

Accelerator = Literal["kvm", "tcg"]
ACCELERATORS: tuple[Accelerator, ...] = ("kvm", "tcg")

# sbin is not on the PATH of an ordinary Debian user, but sfdisk, mke2fs and mkfs.vfat are there.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

# How a tool tells its version, where `--version` is not it.
VERSION_ARGUMENTS = {"packer": ["version"], "mke2fs": ["-V"], "mkfs.vfat": ["--help"]}


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A line of apt-packages.txt; `program` and `minimum` may be empty."""

    package: str
    program: str
    minimum: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What `doctor` says of one thing: how it is, and when it is not good, what to do."""

    subject: str
    good: bool
    state: str
    why: str
    remedy: str = ""
    needed: bool = True

    @property
    def mark(self) -> str:
        """How it stands in one word: BAD stops a build, `no` does not."""
        return "ok" if self.good else "BAD" if self.needed else "no"


def tools(path: Path = PROJECT / "apt-packages.txt") -> tuple[Tool, ...]:
    """Read the list of tools that `bootstrap` and `doctor` share."""
    rows = [line.split("|") for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    cells = [[cell.strip().removeprefix("-") if cell.strip() == "-" else cell.strip() for cell in row] for row in rows]
    return tuple(Tool(package=p, program=program, minimum=least, why=why) for p, program, least, why in cells)


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the first dotted number in a text as numbers: "QEMU 7.2.22 (Debian…)" -> (7, 2, 22)."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(map(int, match[0].split("."))) if match else ()


@cache
def tool_version(program: str) -> str:
    """Return a tool's version such as "7.2.22", or nothing when it tells none.

    Raises:
        HostError: It is not installed.
    """
    if not shutil.which(program):
        package = next((tool.package for tool in tools() if tool.program == program), program)
        raise HostError(f"{program} is not installed", hint=f"run `./bootstrap`, or `apt-get install {package}`")

    def ask() -> str:
        argv = [program, *VERSION_ARGUMENTS.get(program, ["--version"])]
        output = run(argv, check=False, timeout=20, error=HostError).output
        return ".".join(map(str, version_tuple(output)))

    path = Path(shutil.which(program) or program).resolve()
    # A script may hand on to another program, which can change without it; Debian's mmdebstrap is one by itself.
    return str(_memo.get(f"version of {program}", stamps([path]), ask)) if _is_whole(path) else ask()


_memo = Memo()


def remember(folder: Path) -> None:
    """Keep the answers of this host's tools in a folder from now on."""
    global _memo  # noqa: PLW0603 - one host, one memory
    _memo = Memo(folder / "host.json")


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF" or path == Path("/usr/bin/mmdebstrap")


def require(programs: Sequence[str]) -> dict[str, str]:
    """Return the versions of tools.

    Raises:
        HostError: Some are missing or too old; all of them are named.
    """
    versions, wrong = {}, []
    known = {tool.program: tool for tool in tools() if tool.program}
    for program in programs:
        finding = _examine(known[program])
        if finding.good:
            versions[program] = tool_version(program)
        else:
            wrong.append(f"{program}: {finding.state}, needed since it {finding.why}")
    if wrong:
        raise HostError("\n".join(wrong), hint="run `./bootstrap` to install what is missing")
    return versions


def _examine(tool: Tool) -> Finding:
    if not tool.program:
        installed = run(["dpkg-query", "-W", "-f", "${Version}", tool.package], check=False)
        good, state = (installed.returncode == 0, installed.output if installed.returncode == 0 else "not installed")
    elif not shutil.which(tool.program):
        good, state = False, "not installed"
    else:
        version = tool_version(tool.program)
        good = not tool.minimum or version_tuple(version) >= version_tuple(tool.minimum)
        state = (version or "installed") if good else f"{version} is older than {tool.minimum}"
    remedy = "" if good else f"apt-get install {tool.package}"
    return Finding(subject=tool.program or tool.package, good=good, state=state, why=tool.why, remedy=remedy)


# --- Accelerator -----------------------------------------------------------------------------------------

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
        argv += ["-display", "none", "-drive", f"file={sector},format=raw,if=ide,readonly=off"]
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


def find_accelerator(state: Path, override: str | None = None) -> Accelerator:
    """Return the accelerator to use: the override, else the first that runs guest code.

    Args:
        state: A file that remembers the answer until the next boot of the host or another QEMU.

    Raises:
        InputError: The override is no accelerator.
        HostError: Not even TCG runs a guest.
    """
    if override:
        return known_accelerator(override)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    subject = f"{boot_id} {tool_version('qemu-system-x86_64')} kvm={usable} uid={os.geteuid()}"
    remembered = remembered_accelerator(state, subject)
    if remembered:
        return remembered
    for name in ACCELERATORS:
        if (name == "tcg" or usable) and probe_passed(probe_accelerator(name)):
            state.write_text(json.dumps({"subject": subject, "accelerator": name}))
            return name
    raise HostError("QEMU runs no guest code on this host, not even by emulation", hint="run `invoke doctor`")


def remembered_accelerator(state: Path, subject: str) -> Accelerator | None:
    """Return what an earlier run found on the same host; whatever else the file holds is ignored."""
    try:
        known = json.loads(state.read_text())
        same = known["subject"] == subject
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((name for name in ACCELERATORS if same and known.get("accelerator") == name), None)


# --- Firmware --------------------------------------------------------------------------------------------

FIRMWARE_FOLDERS = (
    Path("/etc/qemu/firmware"),
    Path("/usr/share/qemu/firmware"),
    Path("/usr/local/share/qemu/firmware"),
)


@dataclass(frozen=True, kw_only=True)
class Firmware:
    """UEFI firmware: a read-only executable and the template of its variables."""

    code: Path
    variables: Path


def find_uefi(folders: Sequence[Path] = FIRMWARE_FOLDERS) -> Firmware:
    """Find x86-64 UEFI firmware without Secure Boot by QEMU's firmware descriptors.

    The files lie elsewhere on every distribution; the descriptors are the interface.
    Source: https://github.com/qemu/qemu/blob/master/docs/interop/firmware.json

    Raises:
        HostError: There is none.
    """
    for path in sorted((p for folder in folders for p in folder.glob("*.json")), key=lambda p: p.name):
        try:
            found = json.loads(path.read_text())
            mapping = found["mapping"]
            code, variables = mapping["executable"]["filename"], mapping["nvram-template"]["filename"]
            suits = (
                "uefi" in found["interface-types"]
                and "secure-boot" not in found["features"]
                and mapping["executable"].get("format", "raw") == "raw"
                and any(target["architecture"] == "x86_64" for target in found["targets"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another device (memory, kernel) or a descriptor of another format
        if suits and Path(code).is_file() and Path(variables).is_file():
            return Firmware(code=Path(code), variables=Path(variables))
    raise HostError("no UEFI firmware for x86-64 is installed", hint="run `./bootstrap`, or `apt-get install ovmf`")


# --- Debian mirror ---------------------------------------------------------------------------------------


def debian_mirrors(suite: str, override: str | None) -> list[str]:
    """Return the sources.list lines to take a Debian suite from; none for mmdebstrap's own default.

    Args:
        override: URL of a mirror, or whole `deb …` lines, separated by newlines or semicolons.

    A Debian host's own mirrors are used for any suite, since companies often reach no other.
    """
    if override:
        parts = [part.strip() for part in override.replace(";", "\n").splitlines() if part.strip()]
        for part in parts:
            if not part.startswith(("deb ", "http://", "https://", "file:", "copy:")):
                raise InputError(
                    f"--deb-mirror {part!r} is neither a URL nor a `deb …` line", hint="see README: mirrors"
                )
        return [part if part.startswith("deb ") else f"deb {part} {suite} main" for part in parts]
    if not shutil.which("apt-get"):
        return []
    argv = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]
    shown = str(_memo.get(shlex.join(argv), stamps(apt_files()), lambda: run(argv, check=False).output))
    rows = [line.split("|") for line in shown.splitlines() if line.count("|") == 2]  # noqa: PLR2004
    found = {label: uri for origin, label, uri in rows if origin == "Debian"}
    if not {"Debian", "Debian-Security"} <= found.keys():
        return []
    main, security = found["Debian"], found["Debian-Security"]
    return [f"deb {main} {suite} main", f"deb {main} {suite}-updates main", f"deb {security} {suite}-security main"]


def apt_files() -> list[Path]:
    """Return the files and folders that decide what APT's sources are."""
    apt = Path("/etc/apt")
    folders = [apt, apt / "sources.list.d", apt / "apt.conf.d", Path("/var/lib/apt/lists")]
    return [*folders, *(path for folder in folders[:3] for path in sorted(folder.glob("*")) if path.is_file())]


def taken(ports: Mapping[str, int]) -> list[str]:
    """Return those ports on which something listens."""
    found = []
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found.append(f"{port} ({name})")
    return found


# --- Everything ------------------------------------------------------------------------------------------

NEEDED_DISK = 12 << 30
NEEDED_MEMORY = 5 << 30


def examine(cache_folder: Path, accelerator: str | None) -> Iterator[Finding]:
    """Look at everything that a build needs, one finding each."""
    for tool in tools():
        yield _examine(tool)
    yield _user_namespaces()
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
        return Finding(subject=name, good=True, state=f"ran guest code in {done.seconds:.1f} s", why=why)
    hung = done.seconds >= PROBE_SECONDS
    state = f"hung: guest code did not end within {PROBE_SECONDS:.0f} s" if hung else done.output.splitlines()[0]
    remedy = "run on the machine itself, or enable nested virtualization; builds work without it"
    return Finding(subject=name, good=False, state=state, why=why, remedy=remedy, needed=name == "tcg")


def require_user_namespaces() -> None:
    """Check that this user may be root over files that it makes.

    Raises:
        HostError: It may not.
    """
    finding = _user_namespaces()
    if not finding.good:
        raise HostError(f"user namespaces do not work: {finding.state}", hint=finding.remedy)


def _user_namespaces() -> Finding:
    subject, why = "user namespaces", "let the base be made without root"
    done = run(["true"], confine=Confine.FAKE_ROOT, check=False, timeout=20)
    if done.returncode == 0:
        return Finding(subject=subject, good=True, state="work", why=why)
    remedy = (
        "give this user subordinate users (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER); "
        "allow them to ordinary users (sysctl kernel.unprivileged_userns_clone, on Ubuntu "
        "kernel.apparmor_restrict_unprivileged_userns); do not work in a chroot; or build as root"
    )
    state = done.output.splitlines()[0] if done.output else f"{confined(['true'], Confine.FAKE_ROOT)} fails"
    return Finding(subject=subject, good=False, state=state, why=why, remedy=remedy)
