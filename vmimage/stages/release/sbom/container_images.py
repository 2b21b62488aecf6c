"""Archives of container images, as `docker save` and `ctr image export` write them: what is in them."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from vmimage.util.errors import VerifyError
from vmimage.util.json_file import parse_json
from vmimage.util.location import UnavailableError
from vmimage.util.unpack import Bounded

MOST_MEMBERS = 100_000
MOST_UNPACKED_BYTES = 64 << 30
"""Of an archive without its compression: 6 MB of zstd can be 64 GiB of zeros."""
MOST_LIST_BYTES = 4 << 20
"""Of index.json and manifest.json."""
LISTS = ("index.json", "manifest.json")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REFERENCE = re.compile(
    r"(?P<repository>[A-Za-z0-9][A-Za-z0-9._:/-]{0,250}?)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
)
ZSTD, GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
MOST_WINDOW = 1 << 27
"""Bytes of memory that a zstd file may ask for: what `zstd --long` asks for at most by default."""


@dataclass(frozen=True, kw_only=True, order=True)
class ContainerImage:
    """A container image.

    Attributes:
        repository: With the registry: docker.io/rancher/mirrored-pause.
        digest: Of its manifest, "sha256:…"; nothing where the archive does not tell it.
    """

    repository: str
    tag: str
    digest: str = ""


def images_in(file: Path) -> list[ContainerImage]:
    """Return the container images in a file; none when it is no archive of them.

    Raises:
        VerifyError: It is one, and what it says of its images cannot be read.
    """
    try:
        with _unpacked(file) as stream:
            lists = _lists(stream) if stream else {}
        # Only the newer of the two lists gives digests; only the older one is in every archive.
        found = dict.fromkeys(_tags(lists.get("manifest.json", [])), "")
        found |= dict(_described(lists.get("index.json", {})))
        return sorted(_image(name, digest) for name, digest in found.items())
    except (
        tarfile.TarError,
        zstandard.ZstdError,
        zlib.error,
        gzip.BadGzipFile,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        UnavailableError,
    ) as error:
        raise VerifyError(f"{file}: what it says of its container images cannot be read: {error}") from error


@contextmanager
def _unpacked(file: Path) -> Iterator[IO[bytes] | None]:
    """Yield the tar archive in a file; nothing if there is none."""
    with file.open("rb") as packed:
        start = packed.read(TAR_MAGIC_AT + len(TAR_MAGIC))
        packed.seek(0)
        if start.startswith(ZSTD):
            with zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW).stream_reader(packed) as stream:
                yield cast(IO[bytes], stream)
        elif start.startswith(GZIP):
            with gzip.GzipFile(fileobj=packed) as unzipped:
                yield cast(IO[bytes], unzipped)
        else:
            yield packed if start.endswith(TAR_MAGIC) else None


def _lists(stream: IO[bytes]) -> dict[str, Any]:
    """Return the lists of images that an archive has, by their names; what is no archive has none."""
    found: dict[str, Any] = {}
    # Not as a stream ("r|"): tarfile would read headers of any size into memory. It only goes forward all the same.
    with tarfile.open(fileobj=cast(IO[bytes], Bounded(stream)), mode="r:") as members:
        number = 0
        while (member := members.next()) is not None:
            # It would keep what it knows of each.
            members.members = []  # type: ignore[attr-defined]
            number += 1
            if number > MOST_MEMBERS:
                raise ValueError(f"it has more than {MOST_MEMBERS} files")
            if member.offset_data + member.size > MOST_UNPACKED_BYTES:
                raise ValueError(f"it has more than {MOST_UNPACKED_BYTES >> 30} GiB; pack the images in several files")
            name = member.name.removeprefix("./")
            if name not in LISTS or not member.isreg():
                continue
            if member.size > MOST_LIST_BYTES:
                raise ValueError(f"its {name} has more than {MOST_LIST_BYTES} bytes")
            text = members.extractfile(member)
            assert text  # noqa: S101 - regular files have one
            if name in found:
                raise ValueError(f"it has two files {name}")
            found[name] = parse_json(text.read())
    return found


def _tags(images: Any) -> Iterator[str]:
    for image in images:
        tags = image.get("RepoTags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ValueError("RepoTags of an image is no list of names")
        yield from map(qualified, tags)


def qualified(name: str) -> str:
    """Return the full name of an image; `docker save` leaves out that of docker's own registry."""
    first, slash, _ = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def _described(index: Any) -> Iterator[tuple[str, str]]:
    """Yield (name, digest) of what an index of OCI lists under the full name of an image."""
    for entry in index.get("manifests") or []:
        name = (entry.get("annotations") or {}).get("io.containerd.image.name")
        if name and not isinstance(name, str):
            raise ValueError("the name of an image is no text")
        if name:
            if not DIGEST.fullmatch(entry["digest"]):
                raise ValueError(f"{name[:200]!r} has no digest")
            yield name, entry["digest"]


def _image(name: str, digest: str) -> ContainerImage:
    reference = REFERENCE.fullmatch(name)
    if not reference or reference["repository"].endswith("/"):
        raise ValueError(f"no name of a container image: {name[:200]!r}")
    return ContainerImage(repository=reference["repository"], tag=reference["tag"] or "latest", digest=digest)
