"""What this host has: tools and their versions, UEFI firmware, a Debian mirror, user namespaces."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vmimage import PROJECT
from vmimage.util.errors import HostError, InputError, VmimageError
from vmimage.util.memo import Memo, stamps
from vmimage.util.run import Confine, confined, run

# sbin is not on the PATH of an ordinary Debian user, but sfdisk, mke2fs and mkfs.vfat are there.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH") or os.defpath, "/usr/sbin", "/sbin"])

VERSION_SECONDS = 20.0
MOST_VERSION = 64 << 10
# How a tool tells its version, where `--version` is not it.
VERSION_ARGUMENTS = {"packer": ["version"], "mke2fs": ["-V"], "ssh": ["-V"], "mkfs.vfat": ["--help"]}


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
    match = re.search(r"[0-9]{1,9}(?:\.[0-9]{1,9})+(?![0-9])", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def tool_version(program: str) -> str:
    """Return a tool's version such as "7.2.22", or nothing when it tells none.

    Raises:
        HostError: It is not installed.
    """
    found = shutil.which(program)
    if not found:
        package = next((tool.package for tool in tools() if tool.program == program), program)
        raise HostError(f"{program} is not installed", hint=f"run `./bootstrap`, or `apt-get install {package}`")
    path = Path(found).resolve()
    state = path.stat()
    return _version(program, path, state.st_size, state.st_mtime_ns)


@cache
def _version(program: str, path: Path, *_stamp: int) -> str:
    # By path, not by name alone: another PATH may lead to another program of that name.
    def ask() -> str:
        argv = [program, *VERSION_ARGUMENTS.get(program, ["--version"])]
        # Not in the caller's directory: Packer looks for plugins there, and says nothing if its name has a `[`.
        done = run(argv, cwd=Path("/"), check=False, timeout=VERSION_SECONDS, error=HostError, most_output=MOST_VERSION)
        # Numbers in a message of failure are those of something else, of a library that is missing for instance.
        return "" if done.returncode else ".".join(map(str, version_tuple(done.output)))

    # A script may hand on to another program, which can change without it; Debian's mmdebstrap is one by itself.
    return str(_memo.get(f"version of {program}", stamps([path]), ask)) if _is_whole(path) else ask()


_memo = Memo()


def remember(folder: Path) -> None:
    """Keep the answers of this host's tools in a folder from now on."""
    global _memo  # noqa: PLW0603 - one host, one memory
    _memo = Memo(folder / "host.json")


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF" or path == Path("/usr/bin/mmdebstrap")
    except OSError:
        return False


BUILD_TOOLS = ("packer", "qemu-system-x86_64", "qemu-img", "mmdebstrap", "sfdisk", "mkfs.vfat", "mke2fs", "unshare")
"""Without these no image is built."""


def require(programs: Sequence[str]) -> dict[str, str]:
    """Return the versions of tools.

    Raises:
        HostError: Some are missing or too old; all of them are named.
    """
    versions, wrong = {}, []
    known = {tool.program: tool for tool in tools() if tool.program}
    for program in programs:
        finding = examine_tool(known[program])
        if finding.good:
            versions[program] = tool_version(program)
        else:
            wrong.append(f"{program}: {finding.state}, needed since it {finding.why}")
    if wrong:
        raise HostError("\n".join(wrong), hint="run `./bootstrap` to install what is missing")
    return versions


def examine_tool(tool: Tool) -> Finding:
    """Look at a tool: is it there, and new enough?"""
    if not tool.program:
        installed = run(["dpkg-query", "-W", "-f", "${Version}", tool.package], check=False)
        good, state = (installed.returncode == 0, installed.output if installed.returncode == 0 else "not installed")
    elif not shutil.which(tool.program):
        good, state = False, "not installed"
    else:
        good, state = _examine_version(tool)
    remedy = "" if good else f"apt-get install {tool.package}"
    return Finding(subject=tool.program or tool.package, good=good, state=state, why=tool.why, remedy=remedy)


def _examine_version(tool: Tool) -> tuple[bool, str]:
    try:
        version = tool_version(tool.program)
    except VmimageError as error:
        return False, error.message
    if not tool.minimum or version_tuple(version) >= version_tuple(tool.minimum):
        return True, version or "installed"
    if version:
        return False, f"{version} is older than {tool.minimum}"
    argv = shlex.join([tool.program, *VERSION_ARGUMENTS.get(tool.program, ["--version"])])
    return False, f"`{argv}` tells no version"


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
            there = Path(code).is_file() and Path(variables).is_file()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # another device (memory, kernel) or a descriptor of another format
        if suits and there:
            return Firmware(code=Path(code), variables=Path(variables))
    raise HostError("no UEFI firmware for x86-64 is installed", hint="run `./bootstrap`, or `apt-get install ovmf`")


# --- Debian mirror ---------------------------------------------------------------------------------------


def debian_mirrors(suite: str, override: str | None) -> list[str]:
    """Return the sources.list lines to take a Debian suite from; none for mmdebstrap's own default.

    Args:
        override: URL of a mirror, or whole `deb …` lines, separated by semicolons.

    A Debian host's own mirrors are used for any suite, since companies often reach no other.
    """
    if override:
        parts = [part.strip(" ") for part in override.split(";") if part.strip(" ")]
        if not parts:
            raise InputError(
                f"--deb-mirror {override!r} names no mirror", hint="leave it out for this host's own mirrors"
            )
        return [_source_line(part, suite) for part in parts]
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


# `deb [OPTIONS] URI SUITE COMPONENTS`; options may hold spaces.
_DEB_LINE = re.compile(r"deb\s+(?P<options>\[[^]]*\]\s+)?(?P<uri>\S+)\s+(?P<rest>\S.*)")
_SCHEMES = re.compile(r"((tor\+|mirror\+)?https?|file|copy):", re.IGNORECASE)


def _source_line(text: str, suite: str) -> str:
    """Return a URL, or a `deb …` line, as a line of sources.list that mmdebstrap can use.

    Raises:
        InputError: It is neither, or names a directory that is not there.
    """
    line = _DEB_LINE.fullmatch(text)
    uri = line["uri"] if line else text
    # Each becomes a line of sources.list: what holds the end of one would be two.
    if not text.isprintable() or not _SCHEMES.match(uri) or (not line and re.search(r"\s", text)):
        hint = "a URL, or `deb [OPTIONS] URI SUITE COMPONENTS`; file:///srv/debian for a directory; several with ;"
        raise InputError(f"--deb-mirror {text!r} is neither a URL nor a `deb …` line", hint=hint)
    if uri.lower().startswith(("file:", "copy:")):
        uri = _copied(uri)
    return f"deb {line['options'] or ''}{uri} {line['rest']}" if line else f"deb {uri} {suite} main"


def _copied(uri: str) -> str:
    """Return the URI of a local mirror in apt's scheme `copy`.

    With `file`, apt would have dpkg open the packages where they are, which inside the new root they are not.

    Raises:
        InputError: There is no such directory.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InputError(f"--deb-mirror {uri}: {error}", hint="write file:///srv/debian") from error
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InputError(f"--deb-mirror {uri}: no absolute path", hint="write file:///srv/debian")
    if not Path(unquote(parts.path)).is_dir():
        raise InputError(f"--deb-mirror {uri}: there is no such directory", hint="is the disk with it mounted?")
    return f"copy:{parts.path}"


def apt_files() -> list[Path]:
    """Return the files and folders that decide what APT's sources are."""
    apt = Path("/etc/apt")
    folders = [apt, apt / "sources.list.d", apt / "apt.conf.d", Path("/var/lib/apt/lists")]
    return [*folders, *(path for folder in folders[:3] for path in sorted(folder.glob("*")) if path.is_file())]


# --- User namespaces -------------------------------------------------------------------------------------


def require_user_namespaces() -> None:
    """Check that this user may be root over files that it makes.

    Raises:
        HostError: It may not.
    """
    finding = user_namespaces()
    if not finding.good:
        raise HostError(f"user namespaces do not work: {finding.state}", hint=finding.remedy)


def user_namespaces() -> Finding:
    """Find out whether this user may be root over files that it makes."""
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
