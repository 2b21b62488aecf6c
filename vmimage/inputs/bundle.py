"""A bundle of inputs: one file with all that builds need. `invoke bundle-inputs` writes it, `--bundle` takes it.

It is a plain tar archive of the files, each called by its SHA-256 and in that order, behind `index.json`, which says
what they are. Nothing in a bundle is believed: pins and Python packages have the digests that this project knows, and
apt checks Debian's packages. `bootstrap` reads bundles, too: this imports nothing but what comes with Python.

    {"format": 1,
     "pins": {NAME: SHA256, …},
     "bases": [{"suite", "arch", "period", "mirrors", "packages", "part": see mirror.py}, …],
     "python": {"version": "3.11", "platform": "linux-x86_64", "files": {NAME: SHA256, …}},
     "packer": null, or a part of a mirror,
     "compressed": {SHA256: SHA256 of the same as xz, …}}
"""

from __future__ import annotations

import contextlib
import json
import lzma
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256 as new_digest
from pathlib import Path
from typing import BinaryIO

from vmimage.formats.archive import BLOCK, CHUNK, LARGEST_TEXT, Archive, append, finish, member, opened_archive
from vmimage.inputs.mirror import SHA256, MirrorPart, mapping, read_part, text
from vmimage.util.errors import InputError
from vmimage.util.files import sha256_file, written_beside
from vmimage.util.json_file import parse_json

INDEX = "index.json"
UPDATE_INDEX = "update.json"
"""The first file of what `invoke bundle` writes: an update for machines."""
FORMAT = 1
MOST_MEMBERS = 20_000
MOST_MEMORY = 64 << 20
"""That unpacking a list may take."""
MOST_LIST_BYTES = 1 << 30
HINT = "make it with `invoke bundle-inputs`"
DAMAGED = "copy the bundle again, or make another with `invoke bundle-inputs`"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,200}\.(whl|tar\.gz|zip)")
_PERIOD = re.compile(r"[A-Za-z0-9 -]{1,60}")


@dataclass(frozen=True, kw_only=True)
class BundledBase:
    """What a base is made from.

    Attributes:
        period, mirrors: Of the base, as they stand in its key.
        packages: Those that are asked for.
    """

    suite: str
    arch: str
    period: str
    mirrors: tuple[str, ...]
    packages: tuple[str, ...]
    part: MirrorPart


@dataclass(frozen=True, kw_only=True)
class PythonFiles:
    """Python packages of requirements.txt, for one version of Python.

    Attributes:
        files: Name -> SHA-256.
    """

    version: str
    platform: str
    files: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a bundle holds.

    Attributes:
        pins: Name -> SHA-256 of what is fetched for it.
        packer: Debian's package of Packer, with the lists by which apt verifies it.
        compressed: SHA-256 of a file -> that of the same file as xz, which is what the bundle holds.
    """

    pins: Mapping[str, str]
    bases: tuple[BundledBase, ...]
    python: PythonFiles
    packer: MirrorPart | None = None
    compressed: Mapping[str, str] = field(default_factory=dict)

    @property
    def digests(self) -> set[str]:
        """The SHA-256 of all files that it names, as they are in the bundle."""
        parts = [base.part for base in self.bases] + ([self.packer] if self.packer else [])
        named = {*self.pins.values(), *self.python.files.values(), *(each for part in parts for each in part.digests)}
        return {self.compressed.get(each, each) for each in named}


@dataclass(frozen=True)
class Bundle:
    """A bundle that is open."""

    path: Path
    archive: Archive
    index: Index

    def size(self, sha256: str) -> int | None:
        """Return the bytes of a file as the bundle holds it; None if it has no such file."""
        found = self.archive.members.get(self.index.compressed.get(sha256, sha256))
        return found.size if found else None

    def extract(self, sha256: str, to: Path) -> None:
        """Write the file that has a SHA-256.

        Raises:
            InputError: There is none, or it has other bytes.
        """
        if self.size(sha256) is None:
            raise InputError(f"{self.path} has no file with the SHA-256 {sha256}")
        try:
            with to.open("wb") as out:
                if sha256 in self.index.compressed:
                    actual = _decompressed(self.archive, self.index.compressed[sha256], out)
                else:
                    actual = self.archive.copy(sha256, out)
            if actual != sha256:
                raise ValueError(f"the bytes of {sha256} have the SHA-256 {actual}")
        except (ValueError, lzma.LZMAError) as error:
            to.unlink(missing_ok=True)
            raise InputError(f"{self.path} is damaged: {error}", hint=DAMAGED) from None


@dataclass(frozen=True, kw_only=True)
class BundledPackages:
    """The packages of a base in a bundle.

    Attributes:
        lines: The user's lines for sources.list.
    """

    bundle: Path
    part: MirrorPart
    lines: Sequence[str] = field(default=(), repr=False)

    def lay(self, folder: Path) -> list[str]:
        with opened_bundle(self.bundle) as bundle:
            return self.part.lay(folder, bundle.extract, self.lines)


@contextlib.contextmanager
def opened_bundle(path: Path) -> Iterator[Bundle]:
    """Open a bundle; all files that its index names are in it, but no byte of them is compared yet.

    Raises:
        InputError: It is none, or is cut short.
    """
    if not path.exists():
        raise InputError(f"there is no bundle {path}", hint=HINT)
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(opened_archive(path, MOST_MEMBERS))
            if UPDATE_INDEX in archive.members:
                raise ValueError("it is an update for machines, which `invoke bundle` writes")
            if INDEX not in archive.members:
                raise ValueError(f"it has no {INDEX}")
            index = read_index(archive.text(INDEX))
            if missing := sorted(index.digests - archive.members.keys()):
                raise ValueError(f"it has not all files that it names, such as {missing[0]}")
        except (ValueError, OSError) as error:
            raise InputError(f"{path} is no bundle of inputs: {error}", hint=HINT) from None
        yield Bundle(path, archive, index)


def take_file(path: Path, sha256: str, to: Path, most_bytes: int) -> None:
    """Write the file of a bundle that has a SHA-256.

    Raises:
        InputError: There is none, or it has other bytes, or more than it may.
    """
    with opened_bundle(path) as bundle:
        if (bundle.size(sha256) or 0) > most_bytes:
            raise InputError(f"the file in {path} is larger than {most_bytes} bytes; `bytes:` of the pin allows more")
        bundle.extract(sha256, to)


def _decompressed(archive: Archive, sha256: str, out: BinaryIO) -> str:
    """Write what an xz file in an archive holds; returns its SHA-256."""
    found = archive.members[sha256]
    archive.file.seek(found.offset)
    stream, digest, left, done = lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_MEMORY), new_digest(), found.size, 0
    while not stream.eof:
        data = b""
        if stream.needs_input:
            data = archive.file.read(min(CHUNK, left))
            left -= len(data)
            if not data:
                raise ValueError(f"{sha256} is cut short")
        piece = stream.decompress(data, CHUNK)
        done += len(piece)
        if done > MOST_LIST_BYTES:
            raise ValueError(f"{sha256} has more than {MOST_LIST_BYTES} bytes when it is unpacked")
        digest.update(piece)
        out.write(piece)
    return digest.hexdigest()


def read_index(data: bytes) -> Index:
    """Read the index of a bundle.

    Raises:
        ValueError: It is none, or one of another time.
    """
    found = mapping(parse_json(data))
    if repr(found.get("format")) != repr(FORMAT):  # to Python, true is 1
        raise ValueError(
            f"its format is {found.get('format')!r:.40}; this project knows {FORMAT}: use one and the same"
        )
    python = mapping(found.get("python"))
    return Index(
        pins=_digests(found.get("pins"), _NAME),
        bases=tuple(map(_base, _list(found.get("bases")))),
        python=PythonFiles(
            version=text(python.get("version")),
            platform=text(python.get("platform")),
            files=_digests(python.get("files"), _DISTRIBUTION),
        ),
        packer=None if found.get("packer") is None else read_part(found["packer"]),
        compressed=_digests(found.get("compressed"), SHA256),
    )


def _base(data: object) -> BundledBase:
    found = mapping(data)
    return BundledBase(
        suite=text(found.get("suite"), _NAME),
        arch=text(found.get("arch"), _NAME),
        period=text(found.get("period"), _PERIOD),
        mirrors=tuple(text(each) for each in _list(found.get("mirrors"))),
        packages=tuple(text(each, _PACKAGE) for each in _list(found.get("packages"))),
        part=read_part(found.get("part")),
    )


def _list(data: object) -> list[object]:
    if not isinstance(data, list):
        raise ValueError(f"{data!r:.40} is no list")
    return data


def _digests(data: object, form: re.Pattern[str]) -> dict[str, str]:
    return {text(name, form): text(sha256, SHA256) for name, sha256 in mapping(data).items()}


def write_bundle(to: Path, index: Index, files: Mapping[str, Path]) -> str:
    """Write a bundle; returns its SHA-256. The same files give the same bytes.

    Args:
        files: SHA-256 -> where that file is, as it comes into the bundle.

    Raises:
        InputError: One of them has other bytes, or they are too many.
    """
    text = (json.dumps({"format": FORMAT, **asdict(index)}, indent=1, sort_keys=True) + "\n").encode()
    if len(text) > LARGEST_TEXT or len(index.digests) >= MOST_MEMBERS:
        raise InputError(f"{len(index.digests)} files are too many for a bundle", hint="bundle fewer images at a time")
    with written_beside(to) as work, work.open("wb") as archive:
        append(archive, INDEX, text)
        for sha256 in sorted(index.digests):
            size = files[sha256].stat().st_size
            archive.write(member(sha256, size))
            actual = new_digest()
            with files[sha256].open("rb") as source:
                while data := source.read(CHUNK):
                    actual.update(data)
                    archive.write(data)
            archive.write(bytes(-size % BLOCK))
            if actual.hexdigest() != sha256:
                raise InputError(
                    f"{files[sha256]} was damaged in the cache", hint="remove it, and run the command again"
                )
        finish(archive)
    return sha256_file(to)
