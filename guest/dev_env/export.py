"""`dev-env export`: the values file that reproduces what runs now."""

from __future__ import annotations

import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

from dev_env import SHARE, record
from dev_env.files import KEYS, NAME_LENGTH, Release
from dev_env.record import key_of
from dev_env.releases import digest_of, installed
from dev_env.tools import ask, run
from dev_env.yaml_text import yaml_text


def exported(folder: Path | None) -> tuple[str, list[str]]:
    """Return the values file that reproduces what runs now, and what to know about it.

    A values file has each name once. Of several releases of one name, ours keeps it; the others get one of their own.

    Args:
        folder: Where charts that are directories or archives of this machine are packed to; nowhere when None.
    """
    charts: dict[str, Any] = {}
    packed: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    everything = installed()
    ours = {key_of(each) for each in installed(ours=True)} if everything else set()
    # What somebody installed in the place of ours has another source than what is noted.
    recorded = {key: release for key, release in record.read().items() if key in ours}
    running = sorted(everything, key=lambda each: (key_of(each) not in recorded, key_of(each)))
    taken = {release["name"] for release in running}
    for release in running:
        name, namespace = release["name"], release["namespace"]
        key = name if name not in charts else _free(f"{name}-{namespace}", taken)
        taken.add(key)
        if key != name:
            notes.append(f"{name} of the namespace {namespace} is called {key} in this file: another release is {name}")
        values = ask(["helm", "get", "values", name, "--namespace", namespace, "--output=json"]) or {}
        known = recorded.get((namespace, name))
        if not known:
            notes.append(f"{key}: not installed by `dev-env up`, so where {release['chart']} is from is not known")
            known = Release(name=name, chart=release["chart"], namespace=namespace)
        source = known.described() | {"values": values}
        in_image = Path(known.chart).is_relative_to(SHARE)
        if folder and known.is_local and not in_image and Path(known.chart).exists():
            packed[known.chart] = packed.get(known.chart) or _packed(key, known, folder, charts)
            source |= packed[known.chart]
        elif known.is_local and not in_image and (namespace, name) in recorded:
            notes.append(
                f"{key}: its chart {known.chart} is on this machine only; `--output FILE` packs it beside FILE"
            )
        charts[key] = {each: source[each] for each in KEYS if source.get(each)}
    return yaml_text({"charts": charts}), notes


def _free(name: str, taken: Container[str]) -> str:
    """Return a name for a release whose own is another's in this file."""
    tries = [name, *(f"{name[: NAME_LENGTH - 4]}-{number}" for number in range(2, 999))]
    return next(each for each in tries if each not in taken and len(each) <= NAME_LENGTH)


def _packed(key: str, release: Release, folder: Path, charts: dict[str, Any]) -> dict[str, str]:
    """Put a chart into an archive in a folder; returns what the values file says of it."""
    source, into = Path(release.chart), folder / f".{key}.new"
    into.mkdir(exist_ok=True)
    try:
        if source.is_dir():
            said = run(["helm", "package", str(source), "--destination", str(into)])
            made = Path(said.strip().rsplit(": ", 1)[-1])
        else:
            made = into / source.name
            shutil.copyfile(source, made)
        digest = digest_of(made)
        archive = folder / made.name
        # Two charts of one name and version need not be the same chart.
        if any(each.get("chart") == f"{folder.name}/{archive.name}" for each in charts.values()):
            archive = folder / f"{key}-{made.name}"
        made.replace(archive)
    finally:
        shutil.rmtree(into, ignore_errors=True)
    return {"chart": f"{folder.name}/{archive.name}", "digest": digest}
