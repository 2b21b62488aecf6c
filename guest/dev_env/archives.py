"""Archives of container images: what is in them, and which the machine brings."""

from __future__ import annotations

import json
import lzma
import subprocess
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dev_env import Failure, durable
from dev_env.bounds import ARCHIVE_MEMBERS, ARCHIVE_SECONDS, MANIFEST_BYTES, read_text, size
from dev_env.tools import started

FOLDER = Path("/var/lib/rancher/k3s/agent/images")
"""k3s imports what lies there when it starts first. Only root reads it."""
INDEX = Path("/var/lib/dev-env/images.json")
"""What the archives of the folder hold: to read them takes long, and root."""
BROKEN = (
    tarfile.TarError, ValueError, TypeError, AttributeError, EOFError, RecursionError, MemoryError, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")


def names_in(archive: Path) -> list[str]:
    """Return the names of the images in an archive of `docker save`, as containerd calls them.

    Raises:
        Failure: It is no such archive.
    """
    try:
        with _unpacked(archive) as stream, tarfile.open(fileobj=stream, mode="r|*") as members:
            end = time.monotonic() + ARCHIVE_SECONDS
            for number, member in enumerate(members):
                if number >= ARCHIVE_MEMBERS or time.monotonic() > end:
                    raise ValueError(f"no manifest.json in {ARCHIVE_MEMBERS} files or {ARCHIVE_SECONDS:.0f} s")
                is_manifest = member.isreg() and member.name.removeprefix("./") == "manifest.json"
                text = members.extractfile(member) if is_manifest else None
                if text and member.size > MANIFEST_BYTES:
                    raise ValueError(f"its manifest.json has more than {size(MANIFEST_BYTES)}")
                if text:
                    listed = json.loads(text.read())
                    return [qualified(str(tag)) for image in listed for tag in image.get("RepoTags") or []]
    except BROKEN as error:
        raise Failure(f"{archive} is no archive of images: {error}", "`docker save NAME -o FILE` makes one") from error
    raise Failure(f"{archive} has no manifest.json", "`docker save NAME -o FILE` makes an archive that has one")


@contextmanager
def _unpacked(archive: Path) -> Iterator[IO[bytes]]:
    """Yield an archive's bytes; tarfile reads all compressions but zstd by itself."""
    # Unbuffered: another process reads on from where this one is.
    with archive.open("rb", buffering=0) as file:
        compressed = file.read(4) == b"\x28\xb5\x2f\xfd"
        file.seek(0)
        if not compressed:
            yield file
            return
        with started(["zstd", "-dc"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout  # noqa: S101 - it is a pipe
            yield process.stdout


def qualified(name: str) -> str:
    """Return the full name of an image; `docker save` leaves out that of docker's own registry."""
    first, _, rest = name.partition("/")
    if rest and (first == "localhost" or "." in first or ":" in first):
        return name
    return f"docker.io/{name}" if rest else f"docker.io/library/{name}"


def index() -> None:
    """Note what the archives hold that the machine brings; only those that are others than before are read.

    Raises:
        Failure: One of them cannot be read.
    """
    known = _known()
    found: dict[str, dict[str, Any]] = {}
    for archive in sorted(path for path in FOLDER.iterdir() if path.name.endswith(SUFFIXES)):
        size, old = archive.stat().st_size, known.get(archive.name, {})
        found[archive.name] = old if old.get("bytes") == size else {"bytes": size, "names": names_in(archive)}
    if found != known:
        INDEX.parent.mkdir(exist_ok=True)
        durable.write(INDEX, json.dumps(found, indent=1) + "\n")


def brought() -> dict[str, Path]:
    """Return image -> the archive that holds it, for all images that the machine brings."""
    return {name: FOLDER / archive for archive, facts in _known().items() for name in facts["names"]}


def _known() -> dict[str, Any]:
    """Return archive -> its size and the names of its images.

    Raises:
        Failure: The index is not what `dev-env images index` writes.
    """
    if not INDEX.is_file():
        return {}
    try:
        known = dict(json.loads(read_text(INDEX)))
        return {name: {"bytes": int(each["bytes"]), "names": list(each["names"])} for name, each in known.items()}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        hint = f"`sudo rm {INDEX}; sudo dev-env images index`"
        raise Failure(f"{INDEX} is not what `dev-env images index` writes: {error}", hint) from error
