"""Releases of helm: which there are, and taking one away."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dev_env import SYSTEM_NAMESPACES, Failure
from dev_env.bounds import CHART_BYTES, HELM_SECONDS, size
from dev_env.tools import ask, run

LABEL = "dev-env"
PAGE = 250
"""Releases that helm lists at once."""
MOST_RELEASES = 10_000


def installed(*, ours: bool = False) -> list[dict[str, Any]]:
    """Return helm's releases outside the system's namespaces; only those that `up` installed if asked so."""
    which = [f"--selector={LABEL}=up"] if ours else []
    found: list[dict[str, Any]] = []
    for offset in range(0, MOST_RELEASES, PAGE):
        argv = ["helm", "list", "--all-namespaces", *which, f"--max={PAGE}", f"--offset={offset}", "--output=json"]
        page = ask(argv) or []
        found += page
        if len(page) < PAGE:
            return [release for release in found if release["namespace"] not in SYSTEM_NAMESPACES]
    raise Failure(f"helm lists more than {MOST_RELEASES} releases", "is this the machine that was meant?")


def uninstall(release: Mapping[str, Any]) -> None:
    """Uninstall one of helm's releases."""
    argv = ["helm", "uninstall", release["name"], "--namespace", release["namespace"], "--wait", "--timeout=5m"]
    run(argv, shown=True, seconds=HELM_SECONDS)


def digest_of(path: Path) -> str:
    """Return a file's digest as values files write it.

    Raises:
        Failure: It is larger than a chart may be.
    """
    if path.stat().st_size > CHART_BYTES:
        raise Failure(f"{path} has more than {size(CHART_BYTES)}", "is it a chart's archive?")
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
