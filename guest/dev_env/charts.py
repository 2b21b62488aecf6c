"""`dev-env up`, `down` and `export`: what is asked for, installed by helm, and written down again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dev_env import OURS, SHARE, SYSTEM_NAMESPACES, Failure
from dev_env.files import KEYS, Release
from dev_env.tools import apply, ask, items, run, show, started
from dev_env.yaml_text import yaml_text

LABEL = "dev-env"
RECORD = {"name": OURS, "namespace": "kube-system"}
HELM_SECONDS = 900


def up(wanted: Sequence[Release]) -> None:
    """Install or upgrade all that is wanted, wait until it is ready, uninstall what `up` installed before and is not.

    Raises:
        Failure: A chart could not be had, or did not become ready.
    """
    with tempfile.TemporaryDirectory(prefix="dev-env-") as folder:
        # All of them first: a chart that cannot be had should not leave half an environment.
        sources = {release.name: _source(release, Path(folder)) for release in wanted}
        for release in wanted:
            _install(release, sources[release.name], Path(folder))
    names = {(release.namespace, release.name) for release in wanted}
    for running in installed(ours=True):
        if (running["namespace"], running["name"]) not in names:
            uninstall(running)
    _record(wanted)


def down(names: Sequence[str]) -> list[str]:
    """Uninstall what `up` installed, or only what is named; returns the names.

    Raises:
        Failure: A name is not installed.
    """
    running = installed(ours=not names)
    missing = sorted(set(names) - {release["name"] for release in running})
    if missing:
        known = ", ".join(release["name"] for release in running) or "nothing"
        raise Failure(f"not installed: {', '.join(missing)}", f"installed is: {known}")
    chosen = [release for release in running if not names or release["name"] in names]
    for release in chosen:
        uninstall(release)
    return [release["name"] for release in chosen]


def installed(*, ours: bool = False) -> list[dict[str, Any]]:
    """Return helm's releases outside the system's namespaces; only those that `up` installed if asked so."""
    which = [f"--selector={LABEL}=up"] if ours else []
    found = ask(["helm", "list", "--all-namespaces", *which, "--output=json"]) or []
    return [release for release in found if release["namespace"] not in SYSTEM_NAMESPACES]


def uninstall(release: dict[str, Any]) -> None:
    """Uninstall one of helm's releases."""
    argv = ["helm", "uninstall", release["name"], "--namespace", release["namespace"], "--wait", "--timeout=5m"]
    run(argv, shown=True, seconds=HELM_SECONDS)


def exported(folder: Path | None) -> tuple[str, list[str]]:
    """Return the values file that reproduces what runs now, and what to know about it.

    Args:
        folder: Where charts that are directories or archives of this machine are packed to; nowhere when None.
    """
    recorded = _recorded()
    charts: dict[str, Any] = {}
    notes = []
    for running in installed():
        name, namespace = running["name"], running["namespace"]
        values = ask(["helm", "get", "values", name, "--namespace", namespace, "--output=json"]) or {}
        known = recorded.get(name)
        if not known or known.namespace != namespace:
            notes.append(f"{name}: not installed by `dev-env up`, so where {running['chart']} is from is not known")
            known = Release(name=name, chart=running["chart"], namespace=namespace)
        source = known.described() | {"values": values}
        in_image = Path(known.chart).is_relative_to(SHARE)
        if folder and known.is_local and not in_image and Path(known.chart).exists():
            source |= _packed(known, folder)
        elif known.is_local and not in_image:
            notes.append(
                f"{name}: its chart {known.chart} is on this machine only; `--output FILE` packs it beside FILE"
            )
        charts[name] = {key: source[key] for key in KEYS if source.get(key)}
    return yaml_text({"charts": charts}), notes


def _packed(release: Release, folder: Path) -> dict[str, str]:
    """Put a chart into an archive in a folder; returns what the values file says of it."""
    source = Path(release.chart)
    if source.is_dir():
        said = run(["helm", "package", str(source), "--destination", str(folder)])
        archive = Path(said.strip().rsplit(": ", 1)[-1])
    else:
        archive = folder / source.name
        archive.write_bytes(source.read_bytes())
    return {"chart": f"{folder.name}/{archive.name}", "digest": digest_of(archive)}


def digest_of(path: Path) -> str:
    """Return a file's digest as values files write it."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


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


def _install(release: Release, source: str, folder: Path) -> None:
    values = folder / f"{release.name}.values.json"
    values.write_text(json.dumps(release.values))
    argv = ["helm", "upgrade", "--install", release.name, source, "--namespace", release.namespace]
    argv += ["--create-namespace", "--values", str(values), f"--labels={LABEL}=up", "--wait", "--timeout=10m"]
    # The values file wins over what was changed by kubectl (`kubectl scale`, for one), which helm 4 else refuses.
    argv += ["--force-conflicts"]
    if release.version and "://" in source:
        argv += ["--version", release.version]
    show(argv)
    with started(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        last = ""
        while process.poll() is None:
            time.sleep(1)
            last = _progress(release, last)
        assert process.stdout  # noqa: S101 - it is a pipe
        said = process.stdout.read().strip()
    if process.returncode:
        raise Failure(f"{release.name} could not be installed:\n{said}", _hint(release, said))
    print(f"{release.name} is ready", file=sys.stderr)


def _hint(release: Release, said: str) -> str:
    if "another operation" in said:
        return f"an earlier `up` was cut off: `dev-env down {release.name}`, then `dev-env up` again"
    return f"`kubectl get events --namespace {release.namespace}` says why a pod does not start"


def _progress(release: Release, last: str) -> str:
    """Print how many pods are ready, when that changed."""
    try:
        pods = items("pods", namespace=release.namespace, selector=f"app.kubernetes.io/instance={release.name}")
    except Failure:
        return last  # helm itself will say it
    ready = sum(pod_ready(pod) for pod in pods)
    line = f"  {release.name}: {ready} of {len(pods)} pods ready" if pods else ""
    if line != last:
        print(line, file=sys.stderr, flush=True)
    return line


def pod_ready(pod: dict[str, Any]) -> bool:
    """Tell whether a pod takes requests."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _record(wanted: Sequence[Release]) -> None:
    """Note where charts came from: helm does not."""
    text = json.dumps({release.name: release.described() for release in wanted})
    apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": RECORD, "data": {"charts": text}}])


def _recorded() -> dict[str, Release]:
    found = items("configmaps", namespace=RECORD["namespace"])
    texts = [each["data"]["charts"] for each in found if each["metadata"]["name"] == RECORD["name"]]
    return {name: Release(name=name, **chart) for text in texts for name, chart in json.loads(text).items()}
