"""What `dev-env update` takes: a bundle, which `invoke bundle` makes.

It is a tar archive: `update.json` with the version and SHA-256 of each file, and the files under the names of their
pins.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dev_env import Failure
from dev_env.bounds import BUNDLE_BYTES, BUNDLE_INDEX_BYTES, BUNDLE_MEMBERS, DOWNLOAD_SECONDS, chunks, size

INDEX = "update.json"
NAMES = frozenset({"k3s", "kubectl", "helm", "k3s-airgap-images"})
# What k3s, kubectl and helm say of themselves, and how their releases are called.
VERSION = re.compile(r"v\d{1,9}\.\d{1,9}\.\d{1,9}(?:-[0-9A-Za-z.-]{1,40})?(?:\+[0-9A-Za-z.-]{1,40})?")
DIGEST = re.compile(r"[0-9a-f]{64}")
SOCKET_SECONDS = 60
BROKEN = (tarfile.TarError, KeyError, ValueError, TypeError, AttributeError, EOFError, RecursionError, MemoryError)


@dataclass(frozen=True)
class _Facts:
    """What the index says of a file."""

    version: str
    sha256: str


def fetched(source: str, sha256: str, folder: Path) -> Path:
    """Return the bundle as a file, verified if its digest is known.

    Raises:
        Failure: It cannot be had, or is another.
    """
    if sha256 and not DIGEST.fullmatch(sha256.lower()):
        raise Failure(f"--sha256 {sha256}: 64 hexadecimal digits are needed", "`invoke bundle` printed them")
    path = Path(source)
    if "://" in source:
        path = folder / "bundle.tar"
        _download(source, sha256, path)
    if not path.is_file():
        raise Failure(f"there is no file {path}", "`invoke bundle` makes one, on the host")
    if path.stat().st_size > BUNDLE_BYTES:
        raise Failure(f"{path} has more than {size(BUNDLE_BYTES)}", "`invoke bundle` makes one, on the host")
    if sha256 and digest_of(path) != sha256.lower():
        raise Failure(f"{source} is another bundle\n  wanted {sha256}\n  found  {digest_of(path)}", "get it again")
    return path


def _download(source: str, sha256: str, path: Path) -> None:
    if not sha256:
        raise Failure("a bundle from the network needs --sha256", "`invoke bundle` printed it; ask who made it")
    if not source.startswith(("https://", "http://")):
        raise Failure(f"{source} is no http(s) URL", "give a file or an http(s) URL")
    try:
        with urllib.request.urlopen(source, timeout=SOCKET_SECONDS) as answer, path.open("wb") as file:  # noqa: S310
            for data in chunks(answer, BUNDLE_BYTES, DOWNLOAD_SECONDS, source):
                file.write(data)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failure(f"{source} cannot be had: {error}", "look at the URL and the network") from error
    except Failure as error:
        raise Failure(str(error), "get it by other means, and give the file: --from FILE") from error


def unpacked(bundle: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Return name -> (verified file, version) of what a bundle holds.

    Raises:
        Failure: It is no bundle, or a file in it is not what its index says.
    """
    try:
        # Not compressed: nothing in it is larger than it.
        with tarfile.open(bundle, "r:") as archive:
            members = dict(_members(archive))
            index = _index(archive, members)
            found = {}
            for name, facts in index.items():
                if name not in members:
                    raise ValueError(f"{name} is not in it")
                path = folder / name
                _unpack(archive, members[name], path)
                if digest_of(path) != facts.sha256:
                    raise Failure(f"{bundle}: {name} is not what {INDEX} says", "get or make it again")
                found[name] = (path, facts.version)
            return found
    except BROKEN as error:
        why = str(error) or type(error).__name__
        raise Failure(f"{bundle} is no bundle: {why}", "`invoke bundle` makes one, on the host") from error


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    for number, member in enumerate(archive):
        if number >= BUNDLE_MEMBERS:
            raise ValueError(f"it holds more than {BUNDLE_MEMBERS} files")
        # A link leads to something else, or to itself; a sparse file is larger than its archive.
        if not member.isreg() or member.issparse():
            raise ValueError(f"{member.name} in it is no file")
        yield member.name, member


def _index(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> dict[str, _Facts]:
    if INDEX not in members:
        raise ValueError(f"it has no {INDEX}")
    if members[INDEX].size > BUNDLE_INDEX_BYTES:
        raise ValueError(f"{INDEX} has more than {size(BUNDLE_INDEX_BYTES)}")
    with _opened(archive, members[INDEX]) as stream:
        files = json.loads(stream.read())["files"]
    if not isinstance(files, dict):
        raise ValueError(f"{INDEX}: files: a mapping of names is needed")
    unknown = files.keys() - NAMES
    if unknown or not files:
        raise ValueError(f"it holds {', '.join(sorted(unknown)) or 'nothing'}")
    return {name: _facts(name, each) for name, each in files.items()}


def _facts(name: str, said: Any) -> _Facts:
    found = _Facts(said["version"], said["sha256"])
    if not isinstance(found.version, str) or not VERSION.fullmatch(found.version):
        raise ValueError(f"{INDEX}: {name}: {str(found.version)[:100]!r} is no version such as v1.36.4+k3s1")
    if not isinstance(found.sha256, str) or not DIGEST.fullmatch(found.sha256):
        raise ValueError(f"{INDEX}: {name}: sha256: 64 hexadecimal digits are needed")
    return found


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    if stream is None:
        raise ValueError(f"{member.name} is no file")
    return stream


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    with _opened(archive, member) as stream, path.open("wb") as file:
        while data := stream.read(1 << 20):
            file.write(data)
    path.chmod(0o700)


def version_in(said: str) -> str:
    """Return the first version in what a program says of itself; nothing if there is none."""
    match = VERSION.search(said)
    return match[0] if match else ""


def order(version: str) -> tuple[Any, ...]:
    """Return what versions such as "v1.36.4+k3s1" are compared by; "v1.36.4-rc1+k3s1" comes before it."""
    rest, _, build = version.removeprefix("v").partition("+")
    numbers, _, before = rest.partition("-")
    build, _, build_before = build.partition("-")
    parts = [_parts(numbers), (not before, _parts(before)), _parts(build), (not build_before, _parts(build_before))]
    return tuple(parts)


def _parts(text: str) -> tuple[tuple[int, str], ...]:
    """Return numbers and words in their order, for comparison: rc2 comes before rc10."""
    return tuple(
        (int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"[0-9]+|[a-z]+", text.lower())
    )


def digest_of(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
