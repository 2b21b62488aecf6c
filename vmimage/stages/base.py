"""Base: suite + packages -> a bootable raw disk without components. No root, no loop device, no VM.

Unpacking packages under emulation is 10 to 20 times slower than here.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmimage import PROJECT, host
from vmimage.inputs.kept import DEBS_NAME, keep_debs, keep_lists
from vmimage.inputs.mirror import TARGETS, PackageSource
from vmimage.plan import Plan, digests
from vmimage.spec.model import LEAST_DISK as BASE_DISK_BYTES
from vmimage.spec.snapshot import ARCHIVE
from vmimage.stages.stage import NO_INPUT, BuildContext, StoredStage
from vmimage.util.console import Step
from vmimage.util.errors import BuildError
from vmimage.util.files import disk_use, remove_tree
from vmimage.util.masking import masked
from vmimage.util.run import Confine, run

DISK = "disk.raw"
KERNEL = "vmlinuz"
INITRD = "initrd.img"
PACKAGES = "packages.json"
DEBS = "debs.json"
HOOK = PROJECT / "provision" / "base.sh"
PREFERENCES = "preferences"
MOST_TOLD = 20
"""Packages that an error names one by one."""
LIST_HOOK, KEPT, LISTED = PROJECT / "provision" / "base-packages.sh", "kept", "packages.txt"
"""What keeps, in a folder beside the root directory, what that was made from; the name of the folder; and in it, of
what the lists say of each package."""
MIRROR = "mirror"
"""Where packages are laid out that do not come from the mirrors."""

MIB = 1 << 20
SECTOR = 512
ESP_START = 2 * MIB
ESP_SIZE = 64 * MIB
ROOT_START = 128 * MIB
GPT_TAIL = MIB
TIMEOUT_SECONDS = 1800
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "INITRD": "No", "TARGETS": TARGETS}

# Partition types: https://uapi-group.org/specifications/specs/discoverable_partitions_specification/
SFDISK_SCRIPT = f"""\
label: gpt
unit: sectors
start={MIB // SECTOR}, size={MIB // SECTOR}, type=21686148-6449-6E6F-744E-656564454649, name=bios
start={ESP_START // SECTOR}, size={ESP_SIZE // SECTOR}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
start={ROOT_START // SECTOR}, size={(BASE_DISK_BYTES - ROOT_START - GPT_TAIL) // SECTOR}, \
type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
"""


@dataclass(frozen=True, kw_only=True)
class BaseStage(StoredStage):
    """A disk with an operating system and no components.

    Attributes:
        packages: Those that are asked for.
        exclude: Patterns of files that are not unpacked (dpkg's path-exclude); of those, `keep` is (path-include).
        initrd: Drivers in the initrd; none for what Debian puts there.
        period: The span of time for which the lists of packages are good.
        mirrors: Lines for sources.list, without credentials; none for mmdebstrap's default.
        sources: The same with credentials, which are no part of what comes out.
        files: Digests of the project's files that customize it.
        tools: Versions of tools that what comes out depends on.
        versions: Package -> version that it has to have; the mirror's newest where none is named.
        origin: Where the packages come from instead of the mirrors; they are signed, wherever they are from.
    """

    name = "base"
    edition = 4

    suite: str
    arch: str
    packages: tuple[str, ...]
    exclude: tuple[str, ...]
    keep: tuple[str, ...]
    initrd: tuple[str, ...]
    period: str
    mirrors: tuple[str, ...]
    files: Mapping[str, str]
    tools: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = field(default=(), metadata=NO_INPUT, repr=False)
    origin: PackageSource | None = field(default=None, metadata=NO_INPUT, compare=False, repr=False)

    @property
    def why(self) -> str:
        return f"{self.suite}, {len(self.packages)} packages asked for, lists of {self.period}"

    def make(self, work: Path, step: Step) -> Mapping[str, object]:
        host.require_user_namespaces()
        return make_base(self, work, step)


def base_stage(plan: Plan, context: BuildContext) -> BaseStage:
    """Return the base of an image."""
    return BaseStage(
        context=context,
        suite=plan.base.suite,
        arch=plan.base.arch,
        packages=tuple(sorted(plan.packages)),
        exclude=plan.base.exclude,
        keep=plan.base.keep,
        initrd=plan.base.initrd,
        period=plan.period,
        mirrors=tuple(map(masked, plan.debian_mirrors)),
        sources=plan.debian_mirrors,
        files=digests(plan.project, [hook.relative_to(PROJECT) for hook in (LIST_HOOK, HOOK)]),
        tools={tool: plan.tools[tool] for tool in ("mmdebstrap", "mke2fs")},
        versions=plan.package_versions,
        origin=plan.package_source,
    )


def mmdebstrap_command(base: BaseStage, tree: Path, hook: Path = HOOK) -> list[str]:
    """Return the command that unpacks the base into `tree` and lets `hook` customize it; pure.

    It reads the lines for sources.list from standard input: its arguments are for everybody on this host to read.
    """
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--architectures={base.arch}",
        f"--include={','.join(base.packages)}",
        "--aptopt=Apt::Install-Recommends false",
        # Archives of snapshots limit how often one may ask; apt waits longer each time, up to a minute.
        '--aptopt=Acquire::Retries "8"',
        '--aptopt=Acquire::Retries::Delay::Maximum "60"',
        # The lists as they are signed, and all packages: base-packages.sh keeps them.
        '--aptopt=Acquire::GzipIndexes "false"',
        "--skip=essential/unlink",
        *([f'--aptopt=Dir::Etc::Preferences "{tree.with_name(PREFERENCES)}"'] if base.versions else []),
        # No flush after every file: a base that was cut short is thrown away.
        "--dpkgopt=force-unsafe-io",
        # dpkg(1): of the patterns that match a path, the last decides.
        *(f"--dpkgopt=path-exclude={path}" for path in base.exclude),
        *(f"--dpkgopt=path-include={path}" for path in base.keep),
        f"--customize-hook={LIST_HOOK}",
        f"--customize-hook={hook}",
        base.suite,
        str(tree),
        *(["-"] if base.sources or base.origin else []),
    ]


def make_base(base: BaseStage, work: Path, step: Step, hook: Path = HOOK) -> Mapping[str, object]:
    """Make disk.raw, the kernel and initrd to start it directly, packages.json and debs.json in `work`."""
    tree = work / "tree"
    step.now(f"unpack {len(base.packages)} packages and what they need")
    (work / PREFERENCES).write_text("".join(preferences(base.versions)))
    lines = base.origin.lay(work / MIRROR) if base.origin else base.sources
    with tempfile.TemporaryFile(dir=work) as sources:
        sources.write("".join(f"{line}\n" for line in lines).encode())
        sources.seek(0)
        run(
            mmdebstrap_command(base, tree, hook),
            confine=Confine.FAKE_ROOT,
            env={**ENVIRONMENT, "TMPDIR": str(work), "INITRD_DRIVERS": " ".join(base.initrd)},
            stdin=sources.fileno(),
            timeout=TIMEOUT_SECONDS,
            on_line=lambda line: step.now(line.removeprefix("I: ")) if line.startswith("I: ") else None,
        )
    packages = installed_packages(tree)
    (work / PACKAGES).write_text(json.dumps(packages, indent=1) + "\n")
    debs = parse_debs(work / KEPT / LISTED)
    if {deb["package"]: deb["version"] for deb in debs} != packages:
        raise BuildError("the mirror's lists do not tell the digests of all packages that were unpacked")
    require_versions(packages, base.versions)
    (work / DEBS).write_text(json.dumps(debs, indent=1) + "\n")
    (work / PREFERENCES).unlink()
    keep_lists(work / KEPT, debs, work, base.origin.part if base.origin else None)
    keep_debs(work / KEPT / DEBS_NAME, {str(deb["sha256"]) for deb in debs}, base.context.store)
    for name in (KEPT, MIRROR):
        remove_tree(work / name)
    for name, pattern in ((KERNEL, "vmlinuz-*"), (INITRD, "initrd.img-*")):
        shutil.copyfile(_only(tree / "boot", pattern), work / name)
    tree_bytes = disk_use(tree)

    step.now("make the disk")
    disk = work / DISK
    write_disk(disk, tree)
    remove_tree(tree)
    step.outcome = f"{len(packages)} packages, {tree_bytes >> 20} MiB"
    return {"packages": len(packages), "tree_bytes": tree_bytes}


def write_disk(disk: Path, tree: Path) -> None:
    """Write a GPT disk with BIOS-boot, ESP and an ext4 root that holds `tree`, sparse."""
    with disk.open("wb") as file:
        file.truncate(BASE_DISK_BYTES)
    script = disk.with_suffix(".sfdisk")
    script.write_text(SFDISK_SCRIPT)
    # sfdisk reads its script from standard input only; the shell adds nothing but the redirection.
    run(["sh", "-c", 'exec sfdisk --quiet --no-reread --no-tell-kernel "$1" < "$2"', "sh", disk, script])
    script.unlink()
    # One sector a cluster: with fewer than 65525 clusters it would not be FAT32 to firmware, whatever it says.
    esp = ["mkfs.vfat", "-F", "32", "-s", "1", "-n", "ESP", "--offset", str(ESP_START // SECTOR)]
    run([*esp, disk, str(ESP_SIZE // 1024)])
    # Fake root: the files of `tree` belong to subordinate users, whom only the namespace shows as root and others.
    ext4 = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", str(tree), "-E", f"offset={ROOT_START}"]
    blocks = f"{(BASE_DISK_BYTES - ROOT_START - GPT_TAIL) // 1024}k"
    run([*ext4, str(disk), blocks], confine=Confine.FAKE_ROOT)


def installed_packages(tree: Path) -> dict[str, str]:
    """Return package -> version of everything installed in a root directory."""
    argv = ["dpkg-query", f"--admindir={tree / 'var/lib/dpkg'}", "-W", "-f", "${Package} ${Version}\n"]
    return dict(line.split(maxsplit=1) for line in run(argv).output.splitlines())


def preferences(versions: Mapping[str, str]) -> Iterator[str]:
    """Yield what tells apt to take these versions, also if they are older than others; see apt_preferences(5)."""
    for name, version in versions.items():
        yield f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n"


def require_versions(installed: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Check that the packages of a base have the versions that they have to have.

    Raises:
        BuildError: The mirror has others.
    """
    others = [
        f"{name} {installed.get(name, 'is not there')} instead of {wanted.get(name, 'nothing')}"
        for name in sorted(installed.keys() | wanted.keys())
        if installed.get(name) != wanted.get(name)
    ]
    if wanted and others:
        more = [f"and {len(others) - MOST_TOLD} more"] if len(others) > MOST_TOLD else []
        told = "\n    ".join([*others[:MOST_TOLD], *more])
        raise BuildError(
            f"the mirror does not have the packages that are wanted:\n    {told}",
            hint=f"name one that keeps old packages: --deb-mirror {ARCHIVE}/debian/TIME/",
        )


def parse_debs(listed: Path) -> list[dict[str, str | int]]:
    """Read what `apt-cache show` said: of each package its name, version, architecture, and file with size and SHA-256.

    Raises:
        BuildError: Something of a package is missing.
    """
    from debian.deb822 import Deb822

    found: list[dict[str, str | int]] = []
    with listed.open("rb") as file:
        for fields in Deb822.iter_paragraphs(file, use_apt_pkg=False):
            try:
                found.append(
                    {
                        "package": fields["Package"],
                        "version": fields["Version"],
                        "architecture": fields["Architecture"],
                        "file": fields["Filename"],
                        "bytes": int(fields["Size"]),
                        "sha256": fields["SHA256"],
                    }
                )
            except (KeyError, ValueError) as error:
                raise BuildError(f"the mirror's lists do not tell of {fields.get('Package')}: {error}") from error
    return sorted(found, key=lambda deb: str(deb["package"]))


def read_debs(folder: Path) -> list[dict[str, str | int]]:
    """Return what `parse_debs` said of each package of a base, from the folder of its result."""
    found: list[dict[str, str | int]] = json.loads((folder / DEBS).read_text())
    return found


def _only(folder: Path, pattern: str) -> Path:
    found = [path for path in sorted(folder.glob(pattern)) if re.search(r"\d", path.name)]
    if len(found) != 1:
        raise BuildError(f"the base has {len(found)} files {pattern} in /boot instead of one")
    return found[0]
