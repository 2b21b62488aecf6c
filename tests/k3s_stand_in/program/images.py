"""The images that are there, as containerd keeps them: names, labels, and unpacked layers."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

MANAGED = {"io.cri-containerd.image": "managed"}
PINNED = "io.cri-containerd.pinned"
OF_AGENT = {"io.cattle.k3s.pinned": "pinned", PINNED: "pinned"}
"""What k3s pins images with that it imports from its own folder."""
PAUSE = "rancher/mirrored-pause"
TIMES = "%Y-%m-%dT%H:%M:%SZ"
"""In `.cache.json`: whole seconds."""


@dataclass(frozen=True)
class Image:
    """A name of an image, and what it names.

    Attributes:
        id: The digest of its configuration; images are the same that have the same.
        config: `config` of its configuration: Cmd, Entrypoint, Env.
    """

    name: str
    id: str
    digest: str
    size: int
    labels: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


class Images:
    """All images of one data folder; several programs may use it at once."""

    def __init__(self, data: Path) -> None:
        self.archives = data / "agent" / "images"
        self._folder = data / "agent" / "containerd"
        self._file = self._folder / "images.json"
        self.awaited = set[str]()
        """Names in archives of the agent's folder that are not imported yet."""

    @contextmanager
    def changing(self) -> Iterator[dict[str, Image]]:
        """Yield all by name, to be changed; layers that no name needs any more are removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = {image.name: image for image in self.all()}
            yield found
            beside = self._file.with_suffix(".new")
            beside.write_text(json.dumps([asdict(image) for _, image in sorted(found.items())]))
            beside.replace(self._file)
            kept = {self.layers(image) for image in found.values()}
            for layers in set((self._folder / "layers").glob("*")) - kept:
                shutil.rmtree(layers)

    def all(self) -> list[Image]:
        """Return all names, those that are only an ID among them."""
        return [Image(**each) for each in json.loads(self._file.read_text())] if self._file.exists() else []

    def find(self, name: str) -> Image | None:
        """Return the image that a pod names."""
        return next((image for image in self.all() if image.name == full(name)), None)

    def layers(self, image: Image) -> Path:
        """Return where the layers of an image are unpacked, if it has some."""
        return self._folder / "layers" / image.id.removeprefix("sha256:")

    def lacks_pause(self) -> bool:
        """Tell whether the image is gone that every pod needs; it is not asked for where none was ever there."""
        had = (self._folder / "had-pause").exists()
        return had and not any(f"/{PAUSE}:" in image.name for image in self.all())

    def import_archive(self, archive: bytes, labels: dict[str, str] | None = None) -> list[str]:
        """Take in the images of an archive of `docker save`, perhaps compressed; returns their names.

        Raises:
            ValueError: It is no such archive.
        """
        names = []
        try:
            with opened(archive) as found, self.changing() as images:
                for entry in entries(found):
                    image = self._take(found, entry, len(archive))
                    for name in map(full, entry["RepoTags"]):
                        images[name] = Image(**{**asdict(image), "name": name, "labels": MANAGED | (labels or {})})
                        names.append(name)
                    images[image.id] = image
        except (tarfile.TarError, KeyError, OSError, subprocess.CalledProcessError) as error:
            raise ValueError(f"unrecognized image format: {error}") from error
        return names

    def import_all(self, before_last: Callable[[], object] = lambda: None) -> None:
        """Take in the archives of the agent's folder; each once only, where `.cache.json` says so.

        Args:
            before_last: Called when none waits any more: k3s starts its pods then, while it imports the last one.
        """
        cache = self.archives / ".cache.json"
        done = json.loads(cache.read_text() or "{}") if cache.exists() else {}
        known = {path: path.stat() for path in sorted(self.archives.glob("*.tar*"))}
        new = [path for path, facts in known.items() if _is_newer(facts, done.get(str(path)))]
        for path in new:
            with opened(path.read_bytes()) as archive:
                self.awaited |= {full(name) for entry in entries(archive) for name in entry["RepoTags"]}
        if any(f"/{PAUSE}:" in name for name in self.awaited):
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "had-pause").touch()
        for path in new:
            if path == new[-1]:
                before_last()
            print(f'level=info msg="Importing images from {path}"', file=sys.stderr, flush=True)
            names = self.import_archive(path.read_bytes(), OF_AGENT)
            self.awaited -= set(names)
            then = datetime.fromtimestamp(known[path].st_mtime, UTC).strftime(TIMES)
            done[str(path)] = {"size": known[path].st_size, "modTime": then, "images": names}
        if not new:
            before_last()
        if cache.exists():
            cache.write_text(json.dumps(done))

    def _take(self, archive: tarfile.TarFile, entry: dict[str, Any], size: int) -> Image:
        try:
            text = member(archive, entry["Config"])
        except KeyError:
            text = json.dumps(entry).encode()  # images that are names only
        digest = hashlib.sha256(text).hexdigest()
        content = json.loads(text).get("config") or {}
        manifest = hashlib.sha256(json.dumps(entry).encode() + text).hexdigest()
        image = Image(f"sha256:{digest}", f"sha256:{digest}", f"sha256:{manifest}", size, MANAGED, content)
        if entry["Layers"] and not self.layers(image).exists():
            self._unpack([member(archive, name) for name in entry["Layers"]], self.layers(image))
        return image

    def _unpack(self, layers: list[bytes], to: Path) -> None:
        beside = self._folder / "unpacking"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        for layer in layers:
            unpack(layer, beside)
        to.parent.mkdir(exist_ok=True)
        beside.replace(to)


def _is_newer(facts: os.stat_result, noted: dict[str, Any] | None) -> bool:
    """Tell whether an archive is imported again; as k3s, which compares a whole second with the whole time."""
    if noted is None or noted["size"] != facts.st_size:
        return True
    return facts.st_mtime > datetime.strptime(noted["modTime"], TIMES).replace(tzinfo=UTC).timestamp()


def full(name: str) -> str:
    """Return the whole name of an image: registry, repository and tag."""
    first, _, rest = name.partition("/")
    if not rest:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def expanded(archive: bytes) -> bytes:
    """Return an archive without its compression."""
    if archive[:2] == b"\x1f\x8b":
        return gzip.decompress(archive)
    if archive[:4] == b"\x28\xb5\x2f\xfd":
        return subprocess.run(["zstd", "-dc"], input=archive, capture_output=True, check=True).stdout
    return archive


def opened(archive: bytes) -> tarfile.TarFile:
    """Open an archive, perhaps compressed."""
    return tarfile.open(fileobj=BytesIO(expanded(archive)))


def entries(archive: tarfile.TarFile) -> list[dict[str, Any]]:
    """Return what the manifest of an archive lists."""
    return list(json.loads(member(archive, "manifest.json")))


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return a file of an archive.

    Raises:
        KeyError: It is not there.
    """
    stream = archive.extractfile(name)
    if not stream:
        raise KeyError(name)
    return stream.read()


def unpack(layer: bytes, to: Path) -> None:
    """Lay a layer over a folder; what it marks as removed goes."""
    with tarfile.open(fileobj=BytesIO(layer)) as archive:
        # The layers are the tests' own. Pythons before 3.12 know no filters.
        archive.extraction_filter = lambda found, _: found
        for each in archive:
            path = to / each.name
            if path.name == ".wh..wh..opq":
                for old in path.parent.iterdir():
                    _remove(old)
            elif path.name.startswith(".wh."):
                _remove(path.with_name(path.name[4:]))
            else:
                archive.extract(each, to)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
