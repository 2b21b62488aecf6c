"""What a base was made from, kept in the cache: its packages by their SHA-256, and its lists beside its disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmimage.cache.store import Store
from vmimage.inputs.mirror import MirrorPart, Repository, kept_lists, read_part
from vmimage.util.errors import BuildError
from vmimage.util.files import listed, place, sha256_file, sync, sync_tree
from vmimage.util.json_file import read_json

PART = "mirror.json"
LISTS = "lists"
"""In the folder of a base: each list, by the name of its SHA-256."""
MOST_BYTES = 16 << 20
TARGETS_NAME, DEBS_NAME = "targets.txt", "debs"
"""What provision/base-packages.sh writes: what apt said of its lists; the folder of packages."""


def keep_lists(
    kept: Path, debs: Sequence[Mapping[str, object]], result: Path, origin: MirrorPart | None = None
) -> MirrorPart:
    """Move the lists that apt used into the folder of a result, and write down what they are.

    Args:
        kept: What provision/base-packages.sh left.
        debs: What the lists say of each package that was unpacked.
        origin: Where they are from, if that was laid out on this host: the mirrors of then stay their origin.
    """
    folder = result / LISTS
    folder.mkdir()
    repositories = []
    for uri, suite, component, files in kept_lists((kept / TARGETS_NAME).read_text(), kept / LISTS):
        digests = {path: sha256_file(file) for path, file in files.items()}
        for path, file in files.items():
            if not (folder / digests[path]).exists():
                place(file, folder / digests[path])
        repositories.append(Repository(uri=uri, suite=suite, component=component, lists=digests))
    found = origin.repositories if origin else tuple(repositories)
    part = MirrorPart(repositories=found, debs={str(deb["file"]): str(deb["sha256"]) for deb in debs})
    (result / PART).write_text(json.dumps(part.data, indent=1) + "\n")
    return part


def keep_debs(folder: Path, wanted: set[str], store: Store) -> None:
    """Move packages to the verified files of the cache; none whose SHA-256 nobody wants.

    They are not held, which would take an open file for each: whoever misses one can fetch it.
    """
    found = {sha256_file(path): path for path in listed(folder)}
    sync_tree(folder)
    for sha256, path in found.items():
        if sha256 in wanted:
            os.utime(path)  # the time of its last use; apt gives it the mirror's
            path.replace(store.file(sha256))
    sync(store.root / "files")


def kept_part(result: Path) -> MirrorPart:
    """Return what a base was made from.

    Args:
        result: Its folder in the cache.

    Raises:
        BuildError: It is damaged.
    """
    try:
        return read_part(read_json(result / PART, MOST_BYTES))
    except ValueError as error:
        raise BuildError(f"{result / PART}: {error}", hint="make the base again: --from base") from None


def kept_digests(result: Path) -> set[str]:
    """Return the SHA-256 of all that a result in the cache was made from; none where nobody wrote that down."""
    try:
        return kept_part(result).digests
    except BuildError:
        return set()


def kept_file(result: Path, sha256: str, store: Store) -> Path:
    """Return where a list or a package of a base is kept."""
    own = result / LISTS / sha256
    return own if own.exists() else store.file(sha256)


@dataclass(frozen=True, kw_only=True)
class KeptPackages:
    """The packages of a base that the cache holds, for another base that is to have the same.

    Attributes:
        result: The folder of the base.
        lines: The user's lines for sources.list.
    """

    part: MirrorPart
    result: Path
    store: Store
    lines: Sequence[str] = field(default=(), repr=False)

    def lay(self, folder: Path) -> list[str]:
        def put(sha256: str, to: Path) -> None:
            file = kept_file(self.result, sha256, self.store)
            try:
                actual = sha256_file(file)
            except FileNotFoundError:
                raise BuildError(f"{file} was removed from the cache", hint="run the command again") from None
            if actual != sha256:
                raise BuildError(f"{file} was damaged in the cache", hint="remove it, and run the command again")
            place(file, to)

        return self.part.lay(folder, put, self.lines)


def kept_packages(store: Store, key: str, lines: Sequence[str]) -> KeptPackages | None:
    """Return the packages of a base; None unless the cache has every one.

    Args:
        key: Of the base.
    """
    base = store.use("base", key)
    if not base or not (base.path / PART).is_file():
        return None
    part = kept_part(base.path)
    if not all(kept_file(base.path, sha256, store).is_file() for sha256 in part.digests):
        return None
    return KeptPackages(part=part, result=base.path, store=store, lines=lines)
