"""`dev-env up` and `down`: what is asked for, installed by helm; what is not asked for any more, uninstalled.

A release is (namespace, name): its name alone may stand for several. What was installed by others stays as it is.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dev_env import Failure, conflicts, record
from dev_env.api import Api
from dev_env.bounds import HELM_MORE_SECONDS, HELM_SECONDS
from dev_env.console import say
from dev_env.export import exported
from dev_env.files import Release
from dev_env.record import Key, key_of
from dev_env.releases import LABEL, digest_of, installed, uninstall
from dev_env.tools import ended, run

__all__ = ["LABEL", "digest_of", "down", "exported", "installed", "pod_ready", "up"]


def up(wanted: Sequence[Release], *, seconds: float = HELM_SECONDS, force: bool = False) -> None:
    """Install or upgrade all that is wanted, wait until it is ready, uninstall what `up` installed before and is not.

    Each chart is recorded when it is installed, so an interruption forgets none.

    Args:
        seconds: How long one chart may take to become ready.
        force: Also upgrade releases that others installed, which are ours from then on.

    Raises:
        Failure: A chart could not be had, or is another's (nothing was changed), or did not become ready.
    """
    known = record.read()  # if it cannot be kept, nothing is begun
    running = installed()
    ours = installed(ours=True) if running else []
    names = {(release.namespace, release.name) for release in wanted}
    if not force:
        _require_ours(names, running, {key_of(each) for each in ours})
    obsolete = [each for each in ours if key_of(each) not in names]
    with tempfile.TemporaryDirectory(prefix="dev-env-") as folder:
        # All of them first: a chart that cannot be had should not leave half an environment.
        sources = {release.name: _source(release, Path(folder)) for release in wanted}
        for release in wanted:
            _values(release, Path(folder)).write_text(json.dumps(release.values))
        first = _in_the_way(wanted, sources, Path(folder), running, {key_of(each) for each in obsolete})
        for each in obsolete:
            if key_of(each) in first:
                uninstall(each)
                known = record.forget(known, key_of(each))
        for release in wanted:
            _install(release, sources[release.name], _values(release, Path(folder)), seconds)
            known = record.remember(known, release)
    for each in obsolete:
        if key_of(each) not in first:
            uninstall(each)
            known = record.forget(known, key_of(each))


def down(names: Sequence[str]) -> list[str]:
    """Uninstall what `up` installed, or only what is named, as NAME or NAMESPACE/NAME; returns the names.

    Raises:
        Failure: A name is not installed, or is that of several releases.
    """
    known = record.read()
    running = installed(ours=not names)
    chosen = list({key_of(each): each for name in names for each in _named(name, running)}.values())
    for release in chosen if names else running:
        uninstall(release)
        known = record.forget(known, key_of(release))
    return [release["name"] for release in (chosen if names else running)]


def _named(name: str, running: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [each for each in running if name in (each["name"], "/".join(key_of(each)))]
    if not found:
        known = ", ".join(each["name"] for each in running) or "nothing"
        raise Failure(f"not installed: {name}", f"installed is: {known}")
    if len(found) > 1:
        several = [f"`dev-env down {'/'.join(key_of(each))}`" for each in found]
        raise Failure(f"{name} is installed {len(found)} times, in different namespaces", " or ".join(several))
    return found


def _require_ours(names: set[Key], running: Sequence[Mapping[str, Any]], ours: set[Key]) -> None:
    theirs = sorted({key_of(each) for each in running} & names - ours)
    # A plain `helm upgrade` by hand keeps the label; `helm install` in the place of ours does not.
    if theirs:
        listed = ", ".join(map("/".join, theirs))
        ways = " ".join(map("/".join, theirs))
        raise Failure(
            f"installed by helm, not by `dev-env up`: {listed}",
            f"`dev-env down {ways}` uninstalls, `dev-env up --force` takes over; or choose another name",
        )


def _in_the_way(
    wanted: Sequence[Release],
    sources: Mapping[str, str],
    folder: Path,
    running: Sequence[Mapping[str, Any]],
    obsolete: set[Key],
) -> set[Key]:
    """Return the obsolete releases that have to go first: helm installs no object that another release has.

    Raises:
        Failure: It is a release that stays.
    """
    there = {key_of(each): each for each in running}
    new = [release for release in wanted if (release.namespace, release.name) not in there]
    if not new or not there:
        return set()
    made = {key: conflicts.made_by(each) for key, each in there.items()}
    first = set()
    for release in new:
        values = ["--values", str(_values(release, folder)), *_version(release, sources[release.name])]
        makes = conflicts.rendered(release.name, sources[release.name], release.namespace, *values)
        for key, objects in made.items():
            if makes & objects and key not in obsolete:
                name = "/".join(key)
                raise Failure(
                    f"{release.name}: its {conflicts.told(makes & objects)} belongs to the release {name} already",
                    f"`dev-env down {name}`, or leave one of the two out; nothing was changed",
                )
            if makes & objects:
                first.add(key)
    return first


def _values(release: Release, folder: Path) -> Path:
    return folder / f"{release.name}.values.json"


def _version(release: Release, source: str) -> list[str]:
    return ["--version", release.version] if release.version and "://" in source else []


def _source(release: Release, folder: Path) -> str:
    """Return what helm is to install: a verified archive, a directory, or an OCI reference with its digest."""
    if release.chart.startswith("oci://"):
        return f"{release.chart}@{release.digest}" if release.digest else release.chart
    path = Path(release.chart)
    if release.repo:
        into = folder / release.name
        version = ["--version", release.version] if release.version else []
        argv = ["helm", "pull", release.chart, "--repo", release.repo, *version, "--destination", str(into)]
        into.mkdir()
        run(argv, shown=True, seconds=HELM_SECONDS)
        (path,) = into.glob("*.tgz")
    elif not path.exists():
        raise Failure(f"{release.name}: there is no chart {path}", "correct `chart`: it is relative to the values file")
    elif path.is_dir() and release.digest:
        raise Failure(f"{release.name}: {path} is a directory, which has no digest", "pack it with `helm package`")
    if release.digest and digest_of(path) != release.digest:
        raise Failure(f"{release.name}: the chart is another than the file says\n  wanted {release.digest}\n"
                      f"  found  {digest_of(path)}", "get the right one, or correct `digest`")  # fmt: skip
    return str(path)


def _install(release: Release, source: str, values: Path, seconds: float) -> None:
    argv = ["helm", "upgrade", "--install", release.name, source, "--namespace", release.namespace]
    argv += ["--create-namespace", "--values", str(values), f"--labels={LABEL}=up", "--wait"]
    # The values file wins over what was changed by kubectl (`kubectl scale`, for one), which helm 4 else refuses.
    argv += [f"--timeout={seconds:.0f}s", "--force-conflicts", *_version(release, source)]
    progress = _Progress(release)
    done = ended(argv, shown=True, seconds=seconds + HELM_MORE_SECONDS, meanwhile=progress.tell)
    if done.status:
        said = f"{done.output}\n{done.said}".strip()
        raise Failure(f"{release.name} could not be installed:\n{said}", _hint(release, said))
    say(f"{release.name} is ready")


def _hint(release: Release, said: str) -> str:
    if "another operation" in said:
        return f"an earlier `up` was cut off: `dev-env down {release.name}`, then `dev-env up` again"
    if "invalid ownership metadata" in said:
        owner = [re.search(rf'release-{part}" must equal "[^"]*": current value is "([^"]+)"', said)
                 for part in ("namespace", "name")]  # fmt: skip
        name = owner[1][1] if owner[1] else release.name
        if any(owner):
            namespace = owner[0][1] if owner[0] else release.namespace
            return f"the release {namespace}/{name} has an object of this name: `dev-env down {namespace}/{name}`"
        return "an object of this name is there, and no chart's: rename it, or remove it with kubectl"
    if "deadline exceeded" in said or "timed out" in said:
        return f"`dev-env up --timeout SECONDS` waits longer; `kubectl get events -n {release.namespace}` says why"
    return f"`kubectl get events --namespace {release.namespace}` says why a pod does not start"


class _Progress:
    """How many pods of a release are ready."""

    def __init__(self, release: Release) -> None:
        self._release, self._last = release, ""

    def tell(self) -> None:
        """Say it, when it changed."""
        release = self._release
        try:
            pods = Api().items("Pod", release.namespace, f"app.kubernetes.io/instance={release.name}")
        except Failure:
            return  # helm itself will say it
        ready = sum(pod_ready(pod) for pod in pods)
        line = f"  {release.name}: {ready} of {len(pods)} pods ready" if pods else ""
        if line not in ("", self._last):
            say(line)
        self._last = line


def pod_ready(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod takes requests."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
