"""Container images that need no registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dev_env import Failure
from dev_env.tools import ask, run


def load(files: list[Path]) -> list[str]:
    """Load image archives (of `docker save`, also compressed) for pods to use; returns the names that are new.

    Raises:
        Failure: A file is not there, or is no image archive.
    """
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise Failure(f"there is no file {', '.join(missing)}", "`docker save NAME -o FILE` makes one")
    before = set(names())
    for file in files:
        run(
            ["sudo", "k3s", "ctr", "--namespace=k8s.io", "images", "import", str(file.absolute())],
            shown=True,
            seconds=900,
        )
    return sorted(set(names()) - before)


def names() -> list[str]:
    """Return the names of all images that are there."""
    found: Any = ask(["sudo", "k3s", "crictl", "images", "--output=json"])
    return sorted(tag for image in found["images"] for tag in image.get("repoTags") or [])
