"""`dev-env update`: newer k3s, kubectl and helm for a machine that runs, and back to the old ones if they fail.

A bundle (`invoke bundle` makes it) is a tar archive: `update.json` with the version and SHA-256 of each file, and the
files under the names of their pins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dev_env import Failure, archives
from dev_env.ready import WAIT_SECONDS, wait
from dev_env.tools import run

INDEX = "update.json"
BIN = Path("/usr/local/bin")
IMAGES = Path("/var/lib/rancher/k3s/agent/images/k3s-airgap-images.tar.zst")
DATASTORE = Path("/var/lib/rancher/k3s/server/db")
"""What the cluster knows; an older k3s need not understand what a newer one made of it."""
TARGETS = {"k3s": BIN / "k3s", "kubectl": BIN / "kubectl", "helm": BIN / "helm", "k3s-airgap-images": IMAGES}
VERSION_COMMANDS = {"k3s": ["--version"], "kubectl": ["version", "--client"], "helm": ["version"]}
STOP_SECONDS = 120.0
Report = Callable[[str], None]


def update(
    source: str, sha256: str, report: Report, *, allow_older: bool = False, seconds: float = WAIT_SECONDS
) -> list[str]:
    """Install what a bundle brings; returns "name version" of each.

    Args:
        source: A file or a URL.
        sha256: Of the bundle; needed for a URL.
        seconds: How long the cluster may take to be ready with it.

    Raises:
        Failure: The bundle is not what it should be (nothing was changed), or the cluster did not come up with it
            (all is as before).
    """
    if os.geteuid():
        raise Failure("only root may replace these programs", "`sudo dev-env update …`")
    with tempfile.TemporaryDirectory(prefix="dev-env-update-", dir="/var/tmp") as folder:
        bundle = fetched(source, sha256, Path(folder))
        files = unpacked(bundle, Path(folder))
        for name, (path, version) in files.items():
            _require_version(name, path, version)
            if not allow_older:
                _require_newer(name, version)
        replace({name: path for name, (path, _) in files.items()}, report, seconds)
    if "k3s-airgap-images" in files:
        archives.index()
    return [f"{name} {version}" for name, (_, version) in files.items()]


def fetched(source: str, sha256: str, folder: Path) -> Path:
    """Return the bundle as a file, verified if its digest is known.

    Raises:
        Failure: It cannot be had, or is another.
    """
    path = Path(source)
    if "://" in source:
        if not sha256:
            raise Failure("a bundle from the network needs --sha256", "`invoke bundle` printed it; ask who made it")
        if not source.startswith(("https://", "http://")):
            raise Failure(f"{source} is no http(s) URL", "give a file or an http(s) URL")
        path = folder / "bundle.tar"
        try:
            with urllib.request.urlopen(source, timeout=60) as answer, path.open("wb") as file:  # noqa: S310 - http(s)
                shutil.copyfileobj(answer, file)
        except OSError as error:
            raise Failure(f"{source} cannot be had: {error}", "look at the URL and the network") from error
    if not path.is_file():
        raise Failure(f"there is no file {path}", "`invoke bundle` makes one, on the host")
    if sha256 and _sha256(path) != sha256:
        raise Failure(f"{source} is another bundle\n  wanted {sha256}\n  found  {_sha256(path)}", "get it again")
    return path


def unpacked(bundle: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Return name -> (verified file, version) of what a bundle holds.

    Raises:
        Failure: It is no bundle, or a file in it is not what its index says.
    """
    try:
        with tarfile.open(bundle) as archive:
            index = _index(archive)
            found = {}
            for name, facts in index.items():
                path = folder / name
                stream = archive.extractfile(name)
                if stream is None:
                    raise Failure(f"{bundle}: {name} is no file", "make it again")
                with stream, path.open("wb") as file:
                    shutil.copyfileobj(stream, file)
                if _sha256(path) != facts["sha256"]:
                    raise Failure(f"{bundle}: {name} is not what {INDEX} says", "get or make it again")
                path.chmod(0o755 if name in VERSION_COMMANDS else 0o600)
                found[name] = (path, str(facts["version"]))
            return found
    except (tarfile.TarError, KeyError, ValueError, TypeError, EOFError) as error:
        raise Failure(f"{bundle} is no bundle: {error}", "`invoke bundle` makes one, on the host") from error


def _index(archive: tarfile.TarFile) -> Mapping[str, Any]:
    stream = archive.extractfile(INDEX)
    if stream is None:
        raise ValueError(f"{INDEX} is no file")
    with stream:
        index: Mapping[str, Any] = json.load(stream)["files"]
    unknown = index.keys() - TARGETS.keys()
    if unknown or not index:
        raise ValueError(f"it holds {', '.join(sorted(unknown)) or 'nothing'}")
    return index


def _require_version(name: str, path: Path, version: str) -> None:
    """Let a program say its version before it takes the old one's place."""
    if name in VERSION_COMMANDS:
        said = run([str(path), *VERSION_COMMANDS[name]])
        if version not in said:
            raise Failure(f"{name} of the bundle says another version than {version}: {said.splitlines()[0]}")


def _require_newer(name: str, version: str) -> None:
    if name in VERSION_COMMANDS and TARGETS[name].exists():
        said = run([str(TARGETS[name]), *VERSION_COMMANDS[name]])
        match = re.search(r'v\d+\.\d+\.\d+[^\s",}]*', said)
        if match and order(match[0]) > order(version):
            raise Failure(f"{name} {version} is older than {match[0]}, which is here", "--allow-older installs it")


def order(version: str) -> tuple[int, ...]:
    """Return what versions such as "v1.36.4+k3s1" are compared by."""
    return tuple(map(int, re.findall(r"\d+", version.replace("k3s", ""))))


def replace(files: Mapping[str, Path], report: Report, seconds: float) -> None:
    """Put files in their places, with k3s stopped if it is among them; put the old ones back if that fails.

    Raises:
        Failure: The cluster did not become ready; all is as before.
    """
    kept: dict[Path, Path | None] = {}
    restart = any(name.startswith("k3s") for name in files)
    targets = [TARGETS[name] for name in files]
    try:
        if restart:
            _stop()
            targets.append(DATASTORE)
        for target in targets:
            old = target.with_name(f".{target.name}.before-update") if target.exists() else None
            if old:
                _copy(target, old)
            kept[target] = old
        for name, path in files.items():
            _place(path, TARGETS[name])
            report(f"{name} replaced")
        if restart:
            _start(report, seconds)
    except (Failure, OSError, KeyboardInterrupt) as error:
        report("it did not work; putting the old ones back")
        why = str(error) or "it was interrupted"
        _put_back(kept, why, report, restart=restart)
        hint = getattr(error, "hint", "") or "`journalctl -u k3s`"
        raise Failure(f"the update failed, all is as it was before: {why}", hint) from error
    for old in filter(None, kept.values()):
        _remove(old)


def _put_back(kept: Mapping[Path, Path | None], why: str, report: Report, *, restart: bool) -> None:
    """Undo what was begun: only what is in `kept` may have been touched."""
    if restart:
        _stop()
    for target, old in kept.items():
        if not old or target.is_dir():
            _remove(target)
        if old:
            old.replace(target)
    if not restart:
        return
    try:
        _start(report, WAIT_SECONDS)
    except Failure as error:
        text = f"the update failed: {why}\nThe old files are back, but the cluster is not ready with them: {error}"
        raise Failure(text, "`journalctl -u k3s`") from error


def _copy(source: Path, to: Path) -> None:
    _remove(to)
    if source.is_dir():
        shutil.copytree(source, to)
    else:
        shutil.copy2(source, to)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _place(path: Path, target: Path) -> None:
    """Copy beside the target, then rename: a program that runs is never half-written."""
    beside = target.with_name(f".{target.name}.new")
    shutil.copy2(path, beside)
    os.chown(beside, 0, 0)
    beside.replace(target)


def _stop() -> None:
    run(["systemctl", "stop", "k3s"], shown=True, seconds=STOP_SECONDS)


def _start(report: Report, seconds: float) -> None:
    # Without waiting here: systemd starts it again when it fails, and waits for ever when it hangs.
    run(["systemctl", "start", "--no-block", "k3s"], shown=True)
    wait(report, seconds)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
