"""`invoke bundle-inputs`: all that builds need, in one file, for `--bundle` on hosts without a network.

What the cache holds is not fetched again: one that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import lzma
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from vmimage import pipeline
from vmimage.cache.store import ROOM, Store
from vmimage.commands.bundle_inputs.packer import get_packer
from vmimage.commands.bundle_inputs.wheels import get_wheels
from vmimage.commands.session import session
from vmimage.inputs.bundle import BundledBase, Index, PythonFiles, write_bundle
from vmimage.inputs.kept import LISTS, kept_file, kept_part
from vmimage.inputs.mirror import MirrorPart, parse_line, same_uri
from vmimage.plan import PinnedFile, Plan, Source
from vmimage.spec.load import load_spec
from vmimage.stages.base import base_stage, read_debs
from vmimage.stages.fetch import fetch
from vmimage.util.console import Console, Step, human_bytes
from vmimage.util.errors import BuildError, InputError
from vmimage.util.files import fullness_told, place, sha256_file
from vmimage.util.settings import Options

PRESET = 1
"""Of xz, for lists: a higher one takes ten times as long, for a fifth less."""
SPARE_BYTES = 64 << 20
AT_A_TIME = 200
"""Packages that are held in the cache while they are fetched."""


@dataclass
class Collected:
    """What will be in a bundle.

    Attributes:
        files: SHA-256 -> where that file is.
    """

    python: PythonFiles = field(default_factory=lambda: PythonFiles(version="", platform="", files={}))
    packer: MirrorPart | None = None
    pins: dict[str, str] = field(default_factory=dict)
    bases: dict[str, BundledBase] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    lists: set[str] = field(default_factory=set)

    def add_lists(self, part: MirrorPart) -> None:
        """Note which files are lists of packages, which become much smaller."""
        for repository in part.repositories:
            self.lists |= {digest for path, digest in repository.lists.items() if path.endswith("Packages")}

    def index(self, compressed: Mapping[str, str]) -> Index:
        """Return what the bundle says of its files."""
        bases = tuple(self.bases.values())
        return Index(pins=self.pins, bases=bases, python=self.python, packer=self.packer, compressed=compressed)


def make_bundle(images: Sequence[str], chosen: Options, to: Path, *, json: bool) -> None:
    """Write a bundle of the inputs of some images, and print how builds take it.

    Args:
        images: The default one when none is named.

    Raises:
        VmimageError: Something could not be had; what was stays in the cache.
    """
    with session(chosen, json_lines=json, log="bundle-inputs") as (console, store):
        require_place(to, chosen)
        plans = [pipeline.plan_image(name, chosen) for name in images or [load_spec(chosen.spec).default]]
        with store.workspace("bundle") as work:
            with fullness_told(store.root, ROOM):
                found = collect(plans, chosen, store, console, work)
            with (
                fullness_told(to.parent, "make room, or give another file with --output"),
                console.stage("bundle", str(to)) as step,
            ):
                index = found.index(dict(compress(found, work)))
                require_room(to, sum(found.files[digest].stat().st_size for digest in index.digests))
                digest = write_bundle(to, index, found.files)
                step.outcome = f"{len(index.digests)} files, {human_bytes(to.stat().st_size)}"
        console.event("result", path=str(to), sha256=digest, bytes=to.stat().st_size)
        names = " ".join(plan.name for plan in plans)
        console.say(f"written: {to}\nSHA-256: {digest}")
        console.say(f"on a host without a network: VMIMAGE_BUNDLE={to.name} ./bootstrap invoke build-image {names}")


def collect(plans: Sequence[Plan], chosen: Options, store: Store, console: Console, work: Path) -> Collected:
    """Get all that builds of images need.

    Args:
        work: A folder in the cache, which is needed as long as what is returned.
    """
    found = Collected()
    collect_pins(plans, store, console, found)
    for plan in plans:
        collect_base(plan, chosen, store, console, found, work)
    with console.stage("wheels", "the Python packages of requirements.txt") as step:
        found.python = get_wheels(store, step, found.files)
    with console.stage("packer", "Packer, as Debian has it") as step:
        found.packer = get_packer(store, chosen.debian_mirror, step, console.warn, found.files)
    if found.packer:
        found.add_lists(found.packer)
    return found


def require_place(to: Path, chosen: Options) -> None:
    """Check where a bundle is to be written, and what it is made from.

    Raises:
        InputError: Something is there, the folder is not, or inputs would come from another bundle.
    """
    if chosen.bundle:
        raise InputError(
            f"VMIMAGE_BUNDLE={chosen.bundle}: a bundle is not made from a bundle", hint="unset VMIMAGE_BUNDLE"
        )
    # A link that leads nowhere is there, too.
    if os.path.lexists(to):
        raise InputError(f"{to} exists", hint="remove it, or give another name with --output")
    if not to.parent.is_dir():
        raise InputError(f"--output {to}: there is no folder {to.parent}", hint="make it first")


def require_room(to: Path, size: int) -> None:
    """Check that a file has room.

    Raises:
        InputError: It has not.
    """
    free = shutil.disk_usage(to.parent).free
    if free < size + SPARE_BYTES:
        told = f"{to.parent} has {human_bytes(free)} free, and the bundle needs {human_bytes(size)}"
        raise InputError(told, hint="give another file with --output")


def collect_pins(plans: Sequence[Plan], store: Store, console: Console, found: Collected) -> None:
    """Get the pinned files of images."""
    pins = {file.name: file for plan in plans for file in plan.files}
    with console.stage("fetch", f"{len(pins)} pinned files") as step:
        paths = fetch(tuple(pins.values()), store, step)
    found.pins |= {name: file.sha256 for name, file in pins.items()}
    found.files |= {pins[name].sha256: path for name, path in paths.items()}


def collect_base(plan: Plan, chosen: Options, store: Store, console: Console, found: Collected, work: Path) -> None:
    """Make the base of an image, if it is not there, and note what it was made from.

    Args:
        work: A folder in the cache, which is needed as long as what was found.
    """
    base = base_stage(plan, pipeline.build_context(chosen, store))
    if base.key in found.bases:
        return
    with console.stage(base.name, base.why) as step:
        base.obtain(step, fresh=False, check=False)
    folder = base.result.path
    part = kept_part(folder)
    require_whole(part, folder, store)
    debs = tuple(
        PinnedFile(
            name=str(deb["package"]),
            version=str(deb["version"]),
            arch=plan.base.arch,
            sha256=str(deb["sha256"]),
            sources=deb_sources(str(deb["file"]), part, plan.debian_mirrors),
            most_bytes=int(deb["bytes"]),
        )
        for deb in read_debs(folder)
    )
    with console.stage("packages", f"{len(debs)} packages of {plan.base.suite}") as step:
        collect_debs(debs, store, step, found, work)
    found.files |= {digest: folder / LISTS / digest for each in part.repositories for digest in each.lists.values()}
    found.add_lists(part)
    found.bases[base.key] = BundledBase(
        suite=base.suite,
        arch=base.arch,
        period=base.period,
        mirrors=base.mirrors,
        packages=base.packages,
        part=part,
    )


def collect_debs(debs: Sequence[PinnedFile], store: Store, step: Step, found: Collected, work: Path) -> None:
    """Get packages, and give each another name in a folder of ours: to hold one in the cache takes an open file."""
    for start in range(0, len(debs), AT_A_TIME):
        some = debs[start : start + AT_A_TIME]
        for path in fetch(some, store, step).values():
            if not (work / path.name).exists():
                place(path, work / path.name)
            found.files[path.name] = work / path.name
            store.let_go("files", path.name)
    size = sum(found.files[deb.sha256].stat().st_size for deb in debs)
    step.outcome = f"{len(debs)} packages, {human_bytes(size)}"


def require_whole(part: MirrorPart, folder: Path, store: Store) -> None:
    """Check that apt can verify each list, as it will come out of the bundle.

    Raises:
        BuildError: What signs a list does not name its digest.
    """
    for repository in part.repositories:
        signed = "".join(
            kept_file(folder, digest, store).read_text(errors="replace")
            for path, digest in repository.lists.items()
            if path.endswith("Release")
        )
        for path, digest in repository.lists.items():
            if path.endswith("Packages") and f" {digest} " not in signed:
                raise BuildError(
                    f"{repository.uri} signs only compressed forms of {path}, so it cannot be bundled",
                    hint="take the packages from a mirror whose Release names `Packages` itself, as Debian's do",
                )


def deb_sources(path: str, part: MirrorPart, lines: Sequence[str]) -> tuple[Source, ...]:
    """Return where to try for a package that the cache has lost: at each of the mirrors.

    Args:
        lines: Lines for sources.list, with credentials.
    """
    uris = {repository.uri: repository.uri for repository in part.repositories}
    uris |= {
        known: uri for _, uri, _, _ in map(parse_line, lines) for known in uris if same_uri(known) == same_uri(uri)
    }
    return tuple(filter(None, (_source(uri.rstrip("/"), path) for uri in uris.values())))


def _source(uri: str, path: str) -> Source | None:
    scheme, _, rest = uri.partition(":")
    if scheme.lower() in ("http", "https"):
        return Source(kind="url", where=f"{uri}/{path}")
    if scheme.lower() in ("file", "copy"):
        return Source(kind="path", where=unquote(f"/{rest.lstrip('/')}/{path}"))
    return None


def compress(found: Collected, folder: Path) -> Iterator[tuple[str, str]]:
    """Compress lists of packages; yields SHA-256 -> SHA-256 of the xz file, which is then one of the files found."""
    for digest in sorted(found.lists):
        to = folder / f"{digest}.xz"
        with found.files[digest].open("rb") as source, lzma.open(to, "wb", preset=PRESET) as out:
            shutil.copyfileobj(source, out, 1 << 20)
        found.files[sha256_file(to)] = to
        yield digest, sha256_file(to)
