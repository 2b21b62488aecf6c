"""Release: files + a passing verdict on exactly those bytes -> dist/<image>/<version>/.

The folder appears whole, by one rename; `latest` moves by another.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmimage.formats.all import BY_NAME
from vmimage.stages.release.manifest import MANIFEST, MachineFacts, Manifest, read_manifest, verdict_of
from vmimage.stages.release.mark import LOCK, MARK, image_folders, is_latest, is_lock, is_marked
from vmimage.stages.release.version import LATEST, is_left, is_of_key, is_version, order
from vmimage.util.console import Console
from vmimage.util.errors import BuildError, InputError, VerifyError
from vmimage.util.files import listed, remove_tree, sha256_file, sync, sync_tree
from vmimage.util.locks import locked_alone


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version folder in dist/."""

    image: str
    version: str
    path: Path
    manifest: Manifest

    @property
    def machine(self) -> MachineFacts:
        """The virtual hardware that it asks for."""
        return self.manifest.machine

    @property
    def files(self) -> dict[str, dict[str, object]]:
        """Format -> name, bytes and sha256 of its files, for JSON."""
        return {kind: file.model_dump() for kind, file in self.manifest.files.items()}

    @property
    def first_kind(self) -> str:
        """The format to start machines from: qcow2 where there is one."""
        return next(kind for kind in BY_NAME if kind in self.manifest.files)

    def file(self, kind: str) -> Path:
        """The file of a format."""
        return self.path / self.manifest.files[kind].name

    def require_file(self, kind: str) -> Path:
        """Return the file of a format, which is there.

        Raises:
            VerifyError: It is not, or it is a link.
        """
        path = self.file(kind)
        if path.is_symlink() or not path.is_file():
            raise VerifyError(
                f"{path} is {'a link' if path.is_symlink() else 'gone'}, so {self.image} {self.version} is damaged",
                hint=f"choose another version (`invoke list`), or build it again: invoke build-image {self.image}",
            )
        return path


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """A folder in dist/ that has the name of a release but is not one, with the reason."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path} is left out: {self.why}"


def find_release(dist: Path, image: str, export_key: str) -> Release | None:
    """Return the newest release that was made from these inputs."""
    suiting = [found for found in releases(dist) if found.image == image and is_of_key(found.version, export_key)]
    return max(suiting, key=lambda release: order(release.version), default=None)


def look(dist: Path) -> tuple[list[Release], list[Misfit]]:
    """Return all releases in dist/, oldest first, and the misfits."""
    found, misfits = list[Release](), list[Misfit]()
    for folder in image_folders(dist):
        try:
            paths = [path for path in listed(folder) if is_version(path.name)]
        except OSError as error:
            misfits.append(Misfit(path=folder, why=f"cannot be read: {error.strerror}"))
            continue
        for path in paths:
            try:
                found.append(_release(path))
            except ValueError as error:
                # What was removed meanwhile is none.
                misfits += [Misfit(path=path, why=str(error))] if os.path.lexists(path) else []
    # Versions of one day do not sort by time.
    found.sort(key=lambda release: (release.image, release.manifest.released, *order(release.version)))
    return found, misfits


def _release(path: Path) -> Release:
    """Read a version folder.

    Raises:
        ValueError: It is no release, with the reason.
    """
    if path.is_symlink() or not path.is_dir():
        raise ValueError("it is no folder")
    image, version = path.parent.name, path.name
    try:
        manifest = read_manifest(path / MANIFEST)
    except ValueError as error:
        raise ValueError(f"{MANIFEST}: {error}") from None
    if (manifest.image, manifest.version) != (image, version):
        raise ValueError(f"{MANIFEST} is that of {manifest.image} {manifest.version}")
    return Release(image=image, version=version, path=path, manifest=manifest)


def releases(dist: Path) -> list[Release]:
    """Return all releases in dist/, oldest first."""
    return look(dist)[0]


def tell_misfits(dist: Path, console: Console) -> None:
    """Warn of what looks like a release and is none: it is left out everywhere."""
    for misfit in look(dist)[1]:
        console.warn(str(misfit))


def latest_version(image_folder: Path) -> str:
    """Return the version that `latest` leads to; nothing where it is no link of ours."""
    link = image_folder / LATEST
    with contextlib.suppress(OSError):
        return str(link.readlink()) if is_latest(link) else ""
    return ""


def latest_releases(dist: Path) -> list[Release]:
    """Return the latest release of each image: the one that `latest` leads to, else the newest."""
    found: dict[str, Release] = {}
    linked = set[str]()
    for release in releases(dist):
        if release.image not in linked:
            found[release.image] = release
        if latest_version(release.path.parent) == release.version:
            linked.add(release.image)
    return list(found.values())


def remove_releases(dist: Path) -> list[Path]:
    """Remove all releases and the remains of unfinished ones, and nothing else; returns what was removed.

    A release that another process is publishing stays. So do misfits.
    """
    removed = []
    for folder in image_folders(dist):
        if not any(is_version(path.name) or is_latest(path) or is_lock(path) for path in listed(folder)):
            continue
        with publishing(folder) as alone:
            whole = [release.path for release in releases(dist) if release.path.parent == folder] if alone else []
            rest = [path for path in listed(folder) if is_left(path.name) or is_latest(path)] if alone else []
            for path in (*rest, *whole):
                remove_tree(path)
            removed += whole
        with contextlib.suppress(OSError):
            folder.rmdir()
    if is_marked(dist) and [path.name for path in listed(dist)] == [MARK]:
        (dist / MARK).unlink()
    with contextlib.suppress(OSError):
        dist.rmdir()
    return removed


def is_of(release: Release, verdict: Mapping[str, Any], *, check: bool) -> bool:
    """Tell whether a release holds exactly the files that a verdict speaks of, and is proven at least as well.

    Args:
        check: Compare their bytes; without it, their sizes.
    """
    known, wanted = release.manifest.verdict, verdict_of(verdict)
    # A verdict on more machines (`--matrix full`) belongs into a release, and is not given up for one on fewer.
    if not wanted or known.digests != wanted.digests or not known.machines >= wanted.machines:
        return False
    for kind, facts in release.manifest.files.items():
        path = release.file(kind)
        if path.is_symlink() or not path.is_file() or path.stat().st_size != facts.bytes:
            return False
        if check and sha256_file(path) != wanted.digests.get(kind):
            return False
    return True


def publish_release(image_folder: Path, version: str, fill: Callable[[Path], Mapping[str, object]]) -> Release:
    """Publish a version folder, filled by `fill`, and move `latest` to it.

    Args:
        version: One that no release has yet (`free_version`): a release is never replaced, disks stand on it.

    Raises:
        BuildError: There is such a release already, or its manifest could not be read again.
        VmimageError: It could not be filled; nothing was released.
    """
    final = image_folder / version
    # Beside its final place, so that the rename stays on one file system; the name is no version, `sweep` removes it.
    work = image_folder / f".{version}-{uuid.uuid4().hex[:8]}"
    work.mkdir(parents=True)
    try:
        fill(work)
        try:
            manifest = read_manifest(work / MANIFEST)
        except ValueError as error:
            raise BuildError(f"the manifest of {image_folder.name} {version} is unusable: {error}") from error
        work.chmod(0o755)
        sync_tree(work)
        if os.path.lexists(final):
            raise BuildError(f"{final} is there already, and a release is never replaced", hint="run the build again")
        work.rename(final)
        sync(image_folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    point_latest(image_folder, version)
    return Release(image=image_folder.name, version=version, path=final, manifest=manifest)


def point_latest(image_folder: Path, version: str) -> bool:
    """Let the symbolic link `latest` lead to a version, atomically.

    Returns:
        Whether it does; not if something of that name is there which is no link of ours.
    """
    latest = image_folder / LATEST
    if latest_version(image_folder) == version:
        return True
    if os.path.lexists(latest) and not is_latest(latest):
        return False
    link = image_folder / f".{LATEST}-{uuid.uuid4().hex[:8]}"
    link.symlink_to(version)
    link.replace(latest)
    sync(image_folder)
    return True


@contextlib.contextmanager
def publishing(image_folder: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock for publishing an image in dist/; it counts for all caches.

    Args:
        on_wait: Called once if another process holds the lock, before we wait. Without it, we do not wait.

    Yields:
        Whether we hold the lock.

    Raises:
        InputError: The folder of the image is a link, or something else has the name of the lock.
    """
    path = image_folder / LOCK
    if image_folder.is_symlink() or (os.path.lexists(path) and not is_lock(path)):
        raise InputError(
            f"{image_folder if image_folder.is_symlink() else path} is not ours, and is left as it is",
            hint="move it elsewhere, or set VMIMAGE_DIST to another folder",
        )
    image_folder.mkdir(parents=True, exist_ok=True)
    with locked_alone(path, on_wait) as alone:
        yield alone


def sweep(dist: Path) -> None:
    """Remove what killed releases left: hidden work folders and links."""
    for folder in image_folders(dist):
        if not os.access(folder, os.R_OK | os.W_OK) or not any(is_left(path.name) for path in listed(folder)):
            continue
        with publishing(folder) as alone:
            for path in listed(folder) if alone else ():
                if is_left(path.name):
                    remove_tree(path)


def choose(dist: Path, image: str, version: str | None) -> Release:
    """Return a release by version, or the latest: the one that `latest` leads to, or the newest.

    Raises:
        InputError: There is none.
        VerifyError: The one that was named is no release that can be used.
    """
    wanted = version if version != LATEST else None
    for release in releases(dist) if wanted else latest_releases(dist):
        if release.image == image and wanted in (None, release.version):
            return release
    for misfit in look(dist)[1]:
        if misfit.path == dist / image / str(wanted):
            raise VerifyError(
                f"{misfit.path} cannot be used: {misfit.why}",
                hint=f"choose another version (`invoke list`), or build it again: invoke build-image {image}",
            )
    raise InputError(
        f"{dist} holds no release {version or 'latest'} of {image}",
        hint=f"`invoke list` shows what there is; `invoke build-image {image}` makes one",
    )
