"""What a release says of how it was made: manifest.json."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from vmimage import PROJECT
from vmimage.files import disk_use
from vmimage.plan import Plan
from vmimage.run import run
from vmimage.stages.base import PACKAGES
from vmimage.store import Result


def manifest(
    plan: Plan, stages: Mapping[str, Result], files: Mapping[str, Path], fetch_seconds: float, tools: Mapping[str, str]
) -> dict[str, object]:
    """Return what a release says of how it was made.

    `seconds` of a stage is what it took when it ran, even if its result came from the cache this time.
    """
    fetched = sum(path.stat().st_size for path in files.values())
    took: dict[str, dict[str, object]] = {
        "fetch": {"seconds": round(fetch_seconds, 1), "peak_disk_bytes": fetched},
    }
    for name, result in stages.items():
        took[name] = {
            "key": result.key,
            "cached": result.cached,
            "seconds": result.meta["seconds"],
            "peak_disk_bytes": result.meta["peak_bytes"],
        }
    return {
        "summary": plan.image.summary,
        "arch": plan.base.arch,
        "suite": plan.base.suite,
        "disk_bytes": plan.disk_bytes,
        "machine": plan.image.machine.model_dump(),
        "components": list(plan.image.components),
        "released": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "pins": {file.name: {"version": file.version, "sha256": file.sha256} for file in plan.files},
        "packages": json.loads((stages["base"].path / PACKAGES).read_text()),
        "tools": {**tools, "python": platform.python_version()},
        "host": {"system": platform.platform(), "cpus": os.cpu_count()},
        "build_key": stages["bake"].meta["build_key"],
        "peak_disk_bytes": peak_disk_bytes(fetched, stages.values()),
        "stages": took,
        "inputs": {stage.stage: stage.inputs for stage in (plan.base_stage, plan.bake_stage, plan.export_stage)},
    }


def peak_disk_bytes(fetched: int, results: Iterable[Result]) -> int:
    """Return the most bytes that a build of these results has on the disk at any time, with all that it keeps."""
    peak = kept = fetched
    for result in results:
        used = result.meta["peak_bytes"]
        assert isinstance(used, int)  # noqa: S101 - written by the store
        peak = max(peak, kept + used)
        kept += disk_use(result.path)
    return peak


def git_state() -> dict[str, object]:
    """Return the commit of the sources, and whether files differ from it; empty outside a git checkout."""
    if not shutil.which("git"):
        return {}
    # The checkout may belong to another user than the one who builds; git would then refuse to look at it.
    git = ["git", "-C", str(PROJECT), "-c", f"safe.directory={PROJECT}"]
    commit = run([*git, "rev-parse", "HEAD"], check=False)
    if commit.returncode:
        return {}
    changed = run([*git, "status", "--porcelain"], check=False).output
    return {"commit": commit.output.strip(), "changed": changed.splitlines()}
