"""Release: files + a passing verdict on exactly those bytes -> dist/<image>/<version>/.

The folder appears whole, by one rename; `latest` moves by another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from vmimage import PROJECT
from vmimage.formats.all import BY_NAME
from vmimage.spec.model import port_range
from vmimage.util.console import human_bytes
from vmimage.util.errors import InputError, VerifyError
from vmimage.util.files import place, remove_tree, sha256_file, sync, sync_tree
from vmimage.util.locks import lock_file
from vmimage.util.render import render
from vmimage.vm.forwards import FORWARDS

MANIFEST = "manifest.json"
LATEST = "latest"
LOCK = ".lock"
LEFT_FORM = re.compile(r"^\.(latest|\d{8}-[0-9a-f]{8})-[0-9a-f]{8}$")
VERSION_FORM = re.compile(r"^\d{8}-[0-9a-f]{8}$")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version folder in dist/."""

    image: str
    version: str
    path: Path
    manifest: Mapping[str, Any]

    @property
    def first_kind(self) -> str:
        """The format to start machines from: qcow2 where there is one."""
        return next(kind for kind in BY_NAME if kind in self.manifest["files"])

    def file(self, kind: str) -> Path:
        """The file of a format."""
        return self.path / str(self.manifest["files"][kind]["name"])


def version_of(export_key: str, today: date) -> str:
    """Return the version of a new release: the day, and the key of its inputs."""
    return f"{today:%Y%m%d}-{export_key[:8]}"


def find_release(dist: Path, image: str, export_key: str) -> Release | None:
    """Return the newest release that was made from these inputs."""
    found = [release for release in releases(dist) if release.image == image]
    suiting = [release for release in found if release.version.endswith(export_key[:8])]
    return suiting[-1] if suiting else None


def releases(dist: Path) -> list[Release]:
    """Return all releases in dist/, oldest first; folders that hold no manifest are none."""
    found = []
    for path in sorted(dist.glob("*/*")):
        if VERSION_FORM.match(path.name) and not path.is_symlink() and (path / MANIFEST).is_file():
            manifest = json.loads((path / MANIFEST).read_text())
            found.append(Release(image=path.parent.name, version=path.name, path=path, manifest=manifest))
    # Versions of one day do not sort by time.
    return sorted(found, key=lambda release: (release.image, release.manifest.get("released", ""), release.version))


def latest_releases(dist: Path) -> list[Release]:
    """Return of each image the release that `latest` leads to, or the newest where it leads to none."""
    found: dict[str, Release] = {}
    linked = set[str]()
    for release in releases(dist):
        if release.image not in linked:
            found[release.image] = release
        if (release.path.parent / LATEST).resolve() == release.path.resolve():
            linked.add(release.image)
    return list(found.values())


def remove_releases(dist: Path) -> list[Path]:
    """Remove all releases and what unfinished ones left, and nothing else; returns what was removed."""
    removed = []
    for folder in sorted(path for path in dist.iterdir() if path.is_dir() and not path.is_symlink()):
        for path in sorted(folder.iterdir()):
            whole = VERSION_FORM.match(path.name) and not path.is_symlink() and (path / MANIFEST).is_file()
            link = path.name == LATEST and path.is_symlink()
            if whole or link or LEFT_FORM.match(path.name) or (path.name == LOCK and path.is_file()):
                remove_tree(path)
                removed += [path] if whole else []
        with contextlib.suppress(OSError):
            folder.rmdir()
    for lock in dist.glob(LOCK):
        lock.unlink()
    with contextlib.suppress(OSError):
        dist.rmdir()
    return removed


def is_of(release: Release, verdict: Mapping[str, Any], *, check: bool) -> bool:
    """Tell whether a release holds exactly the files that a verdict speaks of, and is proven at least as well.

    Args:
        check: Compare their bytes; without it, their sizes.

    Raises:
        VerifyError: A file's bytes are others.
    """
    known = release.manifest["verdict"]
    machines, wanted = ({check["name"] for check in each["checks"]} for each in (known, verdict))
    # A verdict on more machines (`--matrix full`) belongs into the release, and is not given up for one on fewer.
    if known["files"] != verdict["files"] or not (machines > wanted or known == verdict):
        return False
    for kind, facts in release.manifest["files"].items():
        path = release.file(kind)
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return False
        if check:
            require_verdict(verdict, kind, path)
    return True


def require_verdict(verdict: Mapping[str, Any], kind: str, file: Path) -> str:
    """Check that a verdict passed and speaks of exactly this file; returns the file's SHA-256.

    Raises:
        VerifyError: It does not.
    """
    actual = sha256_file(file)
    if verdict.get("passed") is not True:
        raise VerifyError(f"{file.name} has no passing verdict, so it is not released", hint="run the build again")
    verified = verdict.get("files", {}).get(kind, {}).get("sha256")
    if verified != actual:
        raise VerifyError(
            f"{file.name} is not the file that was verified, so it is not released\n"
            f"    verified {verified}\n    found    {actual}",
            hint="run the build again; `invoke clean` first if it stays so",
        )
    return actual


def fill_release(
    work: Path,
    *,
    image: str,
    arch: str,
    version: str,
    export: Path,
    files: Mapping[str, Mapping[str, object]],
    verdict: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> Mapping[str, object]:
    """Put the files, manifest.json, SHA256SUMS and README.md of a release into a folder; returns the manifest.

    Args:
        files: Format -> name, bytes and sha256 of the exported files in `export`.
        manifest: What else the manifest is to say.

    Raises:
        VerifyError: There is no passing verdict on exactly these bytes.
    """
    released: dict[str, dict[str, object]] = {}
    for kind, facts in files.items():
        name = f"{image}-{version}-{arch}.{kind}"
        place(export / str(facts["name"]), work / name)
        digest = require_verdict(verdict, kind, work / name)
        released[kind] = {"name": name, "bytes": facts["bytes"], "sha256": digest}
    content = {"image": image, "version": version, **manifest, "files": released, "verdict": verdict}
    (work / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    values = {"manifest": content, "files": released, "forwards": FORWARDS, "size": human_bytes}
    values["ports"] = port_range(manifest["machine"].get("ports"))
    values["usages"] = list(_usages(released, image, manifest["machine"]["memory"]))
    (work / "README.md").write_text(render(PROJECT / "templates" / "release-readme.md.j2", values))
    sums = [f"{sha256_file(path)}  {path.name}\n" for path in sorted(work.iterdir())]
    (work / "SHA256SUMS").write_text("".join(sums))
    return content


def _usages(files: Mapping[str, Mapping[str, object]], image: str, memory: str) -> Iterator[str]:
    """Yield how to use each file that has no section of its own in the release's README."""
    for kind, facts in files.items():
        usage = BY_NAME[kind].usage
        if usage:
            short = memory.replace(" GiB", "GB").replace(" MiB", "MB")
            told = usage.format(file=facts["name"], image=image, memory=short)
            yield f"`{facts['name']}`: {told}"


def publish_release(image_folder: Path, version: str, fill: Callable[[Path], Mapping[str, object]]) -> Release:
    """Publish a version folder, filled by `fill`, and move `latest` to it.

    Raises:
        VmimageError: It could not be filled; nothing was released.
    """
    final = image_folder / version
    # Beside its final place, so that the rename stays on one file system; the name is no version, `sweep` removes it.
    work = image_folder / f".{version}-{uuid.uuid4().hex[:8]}"
    work.mkdir(parents=True)
    try:
        content = fill(work)
        work.chmod(0o755)
        sync_tree(work)
        if final.exists():
            # Out of sight first, so that no half of it is ever seen; `sweep` would remove it.
            aside = image_folder / f".{version}-{uuid.uuid4().hex[:8]}"
            final.rename(aside)
            work.rename(final)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            work.rename(final)
        sync(image_folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    point_latest(image_folder, version)
    return Release(image=image_folder.name, version=version, path=final, manifest=content)


def point_latest(image_folder: Path, version: str) -> None:
    """Let the symbolic link `latest` lead to a version, atomically."""
    latest = image_folder / LATEST
    if latest.is_symlink() and latest.readlink() == Path(version):
        return
    link = image_folder / f".latest-{uuid.uuid4().hex[:8]}"
    link.symlink_to(version)
    link.replace(latest)
    sync(image_folder)


@contextlib.contextmanager
def publishing(image_folder: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[bool]:
    """Be the only one who publishes an image in dist/, whatever cache others use.

    Args:
        on_wait: Is called once if another process does; without it that is not waited for.

    Yields:
        Whether we are it.
    """
    image_folder.mkdir(parents=True, exist_ok=True)
    path = image_folder / LOCK
    file = lock_file(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not file and on_wait:
        on_wait()
        file = lock_file(path, fcntl.LOCK_EX)
    if not file:
        yield False
        return
    with file:
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def sweep(dist: Path) -> None:
    """Remove what killed releases left: hidden work folders and links."""
    for folder in {path.parent for path in dist.glob("*/.*") if LEFT_FORM.match(path.name)}:
        with publishing(folder) as alone:
            for path in folder.iterdir() if alone else ():
                if LEFT_FORM.match(path.name):
                    remove_tree(path)


def choose(dist: Path, image: str, version: str | None) -> Release:
    """Return a release by version, or the latest.

    Raises:
        InputError: There is none.
    """
    path = dist / image / (version or LATEST)
    resolved = path.resolve().name
    for release in releases(dist):
        if release.image == image and release.version == resolved:
            return release
    raise InputError(
        f"{dist} holds no release {version or 'latest'} of {image}",
        hint=f"`invoke list` shows what there is; `invoke build-image {image}` makes one",
    )
