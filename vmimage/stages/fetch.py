"""Fetch: pins -> verified files. Any location may serve a file; its SHA-256 decides.

Downloads are resumed, retried and made in parallel; bytes have a temporary name until they are verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from typing_extensions import override

from vmimage.cache.store import ROOM, Store
from vmimage.inputs.bundle import take_file
from vmimage.plan import PinnedFile, Plan, Source
from vmimage.stages.stage import NO_INPUT, BuildContext, Stage
from vmimage.util.console import Step, human_bytes
from vmimage.util.errors import FetchError, VmimageError
from vmimage.util.files import fullness_told, sha256_file
from vmimage.util.links import require_no_link_of_others
from vmimage.util.location import Progress, UnavailableError, require_size
from vmimage.util.masking import masked
from vmimage.util.run import kill_running, run
from vmimage.util.settings import Bounds, fetch_bounds
from vmimage.util.unpack import extract_path

log = logging.getLogger(__name__)

PIP_SECONDS = 600.0
PIP_OPTIONS = ["ABI", "CONSTRAINT", "DEBUG", "EDITABLE", "EXISTS_ACTION", "GROUP", "IMPLEMENTATION", "NO_BINARY"]
PIP_OPTIONS += ["PLATFORM", "PYTHON", "PYTHON_VERSION", "REQUIREMENT", "REQUIRE_HASHES"]
PARALLEL = 4
STOP_SECONDS = 2.0
"""Within which downloads end when they are told to; who does not is left behind."""
MOST_REASON = 2000


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
    bounds = fetch_bounds()
    with fullness_told(store.root, ROOM):
        errors = [error for error in _in_parallel(missing, store, step, bounds, fresh=fresh) if error]
        if errors:
            raise FetchError(
                "\n".join(error.message for error in errors),
                hint=hint_for(missing),
            )
    for file in files:
        os.utime(stored_path(file, store))  # the time of its last use
    size = sum(stored_path(file, store).stat().st_size for file in files)
    step.outcome = f"{len(files)} files, {human_bytes(size)}; {len(files) - len(missing)} were there already"
    return {file.name: stored_path(file, store) for file in files}


def hint_for(files: Sequence[PinnedFile]) -> str:
    """Return what helps where files could not be had."""
    if any(source.kind == "bundle" for file in files for source in file.sources):
        return (
            "make a bundle for this image, from this checkout: `invoke bundle-inputs IMAGE` (docs/building-offline.md)"
        )
    return (
        "put the files into a directory and name it with --mirror (docs/building.md: mirrors), "
        "or build an image that needs none of them (toolbox needs a Python package index only)"
    )


def _in_parallel(
    files: Sequence[PinnedFile], store: Store, step: Step, bounds: Bounds, *, fresh: bool
) -> list[FetchError | None]:
    """Fetch files, some at the same time; returns what went wrong with each.

    An executor's threads would be waited for at the end of the program, whatever they wait for themselves.
    """
    waiting, done, ended = deque(files), list[Future[FetchError | None]](), SimpleQueue[None]()

    def work() -> None:
        while waiting and not bounds.stop.is_set():
            with contextlib.suppress(IndexError):  # another thread took the last one
                file, future = waiting.popleft(), Future[FetchError | None]()
                done.append(future)
                try:
                    future.set_result(_fetch_or_error(file, store, step, bounds, fresh=fresh))
                except BaseException as error:  # noqa: BLE001 - raised again by who asks for the result
                    future.set_exception(error)
        ended.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in files[:PARALLEL]]
    for thread in threads:
        thread.start()
    try:
        # Until Python 3.13, Thread.join takes a thread for ended when a signal interrupts it.
        for _ in threads:
            ended.get()
    except BaseException:
        bounds.stop.set()
        kill_running()
        end = time.monotonic() + STOP_SECONDS
        with contextlib.suppress(Empty):
            for _ in threads:
                ended.get(timeout=max(0.0, end - time.monotonic()))
        raise
    return [future.result() for future in done]


def stored_path(file: PinnedFile, store: Store) -> Path:
    """Return where the store keeps a file."""
    return store.file(file.sha256)


def stored(file: PinnedFile, store: Store) -> bool:
    """Tell whether the store holds a file; it only ever holds verified ones."""
    return stored_path(file, store).is_file()


def _fetch_or_error(file: PinnedFile, store: Store, step: Step, bounds: Bounds, *, fresh: bool) -> FetchError | None:
    try:
        with store.lock(f"file-{file.sha256}", on_wait=lambda: step.now(f"{file.name}: another process fetches it")):
            if fresh or not stored(file, store):
                _fetch(file, store, step, replace(bounds, most_bytes=file.most_bytes or bounds.most_bytes))
    except FetchError as error:
        return error
    return None


def _fetch(file: PinnedFile, store: Store, step: Step, bounds: Bounds) -> None:
    """Try the locations in order until one serves the pinned bytes."""
    tried: list[str] = []
    for source in file.sources:
        if bounds.stop.is_set():
            break
        with store.workspace("fetch") as work:
            try:
                step.now(f"{file.name} {file.version} from {source}")
                got = _obtain(source, file, store, work, step.bar(f"{file.name} {file.version}"), bounds)
                _require_digest(got, file.sha256, "content")
                if file.members:  # seen here, not in the middle of a bake
                    _unpacked(got, file.members, work / "member", bounds)
                store.publish(got, stored_path(file, store))
                return
            except Exception as error:  # whatever a location answers, another one may have the file
                log.debug("%s from %s", file.name, source, exc_info=True)
                tried.append(f"    {source}\n      {reason_of(error)}")
    raise FetchError(f"{file.name} {file.version} ({file.arch}) could not be had:\n" + "\n".join(tried))


def reason_of(error: Exception) -> str:
    """Return why a location failed, in some words."""
    if isinstance(error, VmimageError) and error.hint:
        return f"{error.message}: {error.hint}"
    known = isinstance(error, UnavailableError | VmimageError | OSError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return text if len(text) <= MOST_REASON else f"{text[:MOST_REASON]} …"


def _partial(source: Source, file: PinnedFile, store: Store) -> Path:
    """Where an unfinished download waits to be resumed; a name for each pair of digest and location."""
    # Another password goes on where the first one stopped.
    origin = hashlib.sha256(masked(source.where).encode()).hexdigest()[:12]
    return store.root / "partial" / f"{file.sha256}-{origin}"


def _obtain(source: Source, file: PinnedFile, store: Store, work: Path, progress: Progress, bounds: Bounds) -> Path:
    """Get what a location holds, and out of it the member, as a file in `work`."""
    got = work / "download"
    if source.kind == "path":
        if not Path(source.where).is_file():
            raise UnavailableError("no such file")
        require_size(Path(source.where).stat().st_size, bounds.most_bytes)
        if not source.members:
            shutil.copyfile(source.where, got)
            return got
        got = Path(source.where)
    elif source.kind == "bundle":
        take_file(Path(source.where), file.sha256, got, bounds.most_bytes)
    elif source.kind == "pypi":
        got = _pip_download(source.where, work, bounds)
    else:
        from vmimage.util.download import download

        partial = _partial(source, file, store)
        partial.parent.mkdir(exist_ok=True)
        require_no_link_of_others(partial.parent)
        if partial.is_symlink():
            partial.unlink()
        store.hold(partial.parent.name, partial.name)
        download(source.where, partial, progress, bounds)
        partial.rename(got)
        store.let_go(partial.parent.name, partial.name)
    if source.sha256:
        _require_digest(got, source.sha256, "archive")
    return _unpacked(got, source.members, work / "member", bounds) if source.members else got


def _unpacked(archive: Path, members: Sequence[str], to: Path, bounds: Bounds) -> Path:
    ends = time.monotonic() + bounds.seconds
    extract_path(archive, members, to, most_bytes=bounds.most_bytes, check=lambda: _go_on(bounds, ends))
    return to


def _require_digest(path: Path, sha256: str, what: str) -> None:
    actual = sha256_file(path)
    if actual != sha256:
        raise UnavailableError(f"wrong {what}, refused\n        pinned {sha256}\n        served {actual}")


def file_of(file: PinnedFile, fetched: Path, folder: Path) -> Path:
    """Return the file of a pin: what was fetched, or what is in that archive, unpacked to `folder`.

    Raises:
        FetchError: The archive is damaged.
    """
    if not file.members:
        return fetched
    # What is in it has no digest of its own, by which anybody would notice.
    if sha256_file(fetched) != file.sha256:
        fetched.unlink()
        raise FetchError(f"{fetched} was damaged in the cache, and removed", hint="run the command again")
    try:
        most = file.most_bytes or Bounds().most_bytes
        return _unpacked(fetched, file.members, folder / file.name, replace(fetch_bounds(), most_bytes=most))
    except UnavailableError as error:
        raise FetchError(f"{file.name} {file.version}: {error}", hint="remove the cache with `invoke clean`") from error


def _go_on(bounds: Bounds, ends: float) -> None:
    """Raise UnavailableError when unpacking is to end."""
    if bounds.stop.is_set():
        raise UnavailableError("stopped")
    if time.monotonic() > ends:
        raise UnavailableError(f"unpacking took longer than {bounds.seconds:.0f} s")


def _pip_download(requirement: str, work: Path, bounds: Bounds) -> Path:
    """Download one Python distribution with the user's own index settings; nothing of it is run."""
    folder = work / "pip"
    # `-I`: neither the directory nor variables bring another pip. An index may send as little as a server.
    argv = ["prlimit", f"--fsize={bounds.most_bytes}", sys.executable, "-I", "-m", "pip", "download", "--no-deps"]
    argv += ["--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    argv += ["--dest", str(folder), requirement]
    # What users set for their own installations would refuse or change this one.
    env = {"TMPDIR": str(work), **dict.fromkeys((f"PIP_{name}" for name in PIP_OPTIONS), "")}
    run(argv, env=env, timeout=min(PIP_SECONDS, bounds.seconds), error=FetchError)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UnavailableError(f"pip brought {len(wheels)} files instead of one wheel")
    return wheels[0]
