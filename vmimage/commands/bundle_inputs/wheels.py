"""The Python packages that `bootstrap` installs: those of requirements.txt, by their hashes, for this Python."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from vmimage import PROJECT
from vmimage.cache.store import Store
from vmimage.inputs.bundle import PythonFiles
from vmimage.inputs.unpack import python_here
from vmimage.stages.fetch import PIP_OPTIONS
from vmimage.util.console import Step
from vmimage.util.errors import FetchError
from vmimage.util.files import listed, sha256_file
from vmimage.util.run import run

LOCKS = ("requirements-build.txt", "requirements.txt")
STAGE = "wheels"
SECONDS = 1800.0
MOST_FILE_BYTES = 1 << 30
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def get_wheels(store: Store, step: Step, files: dict[str, Path], project: Path = PROJECT) -> PythonFiles:
    """Get the packages, if the cache has them not; their files are added to `files`, by their SHA-256.

    Raises:
        FetchError: Some could not be had, or what came is not locked.
    """
    version, platform = python_here()
    inputs = {"locks": {name: sha256_file(project / name) for name in LOCKS}, "python": version, "platform": platform}
    result = store.get_or_make(STAGE, inputs, lambda work: download(project, work, step), step)
    locked = set(_HASH.findall("".join((project / name).read_text() for name in LOCKS)))
    found = {path.name: sha256_file(path) for path in listed(result.path) if path.name in result.meta["content"]}
    others = sorted(name for name, digest in found.items() if digest not in locked)
    if others:
        raise FetchError(
            f"not in {' or '.join(LOCKS)}: {', '.join(others)}", hint="remove the cache with `invoke clean`"
        )
    files |= {digest: result.path / name for name, digest in found.items()}
    step.outcome = f"{len(found)} packages for Python {version}"
    return PythonFiles(version=version, platform=platform, files=found)


def download(project: Path, work: Path, step: Step) -> Mapping[str, object]:
    """Download the locked packages for this Python with the user's own index settings."""
    # As `bootstrap` installs them. What is published as source only is asked for its metadata, by the setuptools that
    # the lock names: pip wants that.
    argv = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--require-hashes", "--prefer-binary"]
    argv += [
        "--use-pep517",
        "--no-build-isolation",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    for name in LOCKS:
        argv += ["--requirement", str(project / name)]
    env = {"TMPDIR": str(work), **dict.fromkeys((f"PIP_{name}" for name in PIP_OPTIONS), "")}
    argv = ["prlimit", f"--fsize={MOST_FILE_BYTES}", *argv, "--dest", str(work)]
    run(argv, env=env, timeout=SECONDS, error=FetchError, on_line=lambda line: step.now(line.strip()[:100]))
    return {}
