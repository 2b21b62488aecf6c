"""What `invoke diff` is given: an image file, the folder of a release, or the name of one in dist/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmimage.commands.verify_file import manifest_of_file
from vmimage.formats.all import BY_NAME, kind_of
from vmimage.stages.release.dist import Release, choose
from vmimage.stages.release.manifest import MANIFEST, Manifest, read_manifest
from vmimage.stages.release.mark import IMAGE
from vmimage.stages.release.version import LATEST, is_version
from vmimage.stages.verify.subject import File
from vmimage.util.console import Console
from vmimage.util.errors import InputError, VerifyError
from vmimage.util.files import expanded

SUBJECTS = "name an image file, the folder of a release, or IMAGE or IMAGE/VERSION (`invoke list` shows them)"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An image to compare.

    Attributes:
        name: For people.
        file: The one that is read.
        sizes: Format -> bytes of every file that it is released as.
        manifest: Of its release, if there is one.
    """

    name: str
    file: File
    sizes: Mapping[str, int]
    manifest: Manifest | None


def find_subject(text: str, dist: Path, console: Console) -> Subject:
    """Return what a user named.

    Raises:
        InputError: There is no such thing.
        VerifyError: It is a release that cannot be used.
    """
    path = expanded(text, "diff")
    if path.is_file():
        return _of_file(path, console)
    if path.is_dir() and (path / MANIFEST).exists():
        return _of_release(_release_in(path))
    image, slash, version = text.partition("/")
    if IMAGE.fullmatch(image) and (version in ("", LATEST) or is_version(version)) and bool(slash) == bool(version):
        return _of_release(choose(dist, image, version or None))
    if path.is_dir():
        raise InputError(f"{path} is a folder without {MANIFEST}, so it is no release", hint=SUBJECTS)
    raise InputError(f"there is no file, release or image {text}", hint=SUBJECTS)


def _of_file(path: Path, console: Console) -> Subject:
    kind = kind_of(path)
    if not kind:
        raise InputError(f"{path.name} has no known format", hint=f"names end in {', '.join(BY_NAME)}")
    known = manifest_of_file(path, console)
    recorded = [each.sha256 for each in known.files.values() if each.name == path.name] if known else []
    file = File(kind=kind, path=path, recorded_sha256=recorded[0] if recorded else "")
    return Subject(name=str(path), file=file, sizes={kind: path.stat().st_size}, manifest=known)


def _release_in(folder: Path) -> Release:
    """Return the release in a folder, wherever that is.

    Raises:
        VerifyError: It cannot be used.
    """
    try:
        manifest = read_manifest(folder / MANIFEST)
    except ValueError as error:
        raise VerifyError(f"{folder} cannot be used: {MANIFEST}: {error}", hint="download or build it again") from error
    return Release(image=manifest.image, version=manifest.version, path=folder, manifest=manifest)


def _of_release(release: Release) -> Subject:
    kind = release.first_kind
    recorded = release.manifest.files[kind].sha256
    return Subject(
        name=f"{release.image} {release.version}",
        file=File(kind=kind, path=release.require_file(kind), recorded_sha256=recorded),
        sizes={kind: file.bytes for kind, file in release.manifest.files.items()},
        manifest=release.manifest,
    )
