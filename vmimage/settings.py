"""What the environment may set, once for all tasks; an argument of a task wins over it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmimage import PROJECT
from vmimage.pipeline import Options

ENVIRONMENT = {
    "VMIMAGE_CACHE": "folder of cached results, logs and temporary files",
    "VMIMAGE_DIST": "folder of releases",
    "VMIMAGE_MIRROR": "directories or URLs with pinned files, separated by spaces, tried first",
    "VMIMAGE_DEB_MIRROR": "URL of a Debian mirror, or `deb …` lines separated by semicolons",
    "VMIMAGE_ACCELERATOR": "kvm or tcg",
}


def options(
    environment: Mapping[str, str] = os.environ,
    *,
    mirrors: Sequence[str] = (),
    debian_mirror: str | None = None,
    accelerator: str | None = None,
) -> Options:
    """Join arguments and environment."""
    caches = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Options(
        cache=Path(environment.get("VMIMAGE_CACHE") or caches / "vmimage").expanduser().absolute(),
        dist=Path(environment.get("VMIMAGE_DIST") or PROJECT / "dist").expanduser().absolute(),
        mirrors=(*mirrors, *environment.get("VMIMAGE_MIRROR", "").split()),
        debian_mirror=debian_mirror or environment.get("VMIMAGE_DEB_MIRROR") or None,
        accelerator=accelerator or environment.get("VMIMAGE_ACCELERATOR") or None,
    )
