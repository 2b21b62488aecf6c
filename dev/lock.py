"""`invoke lock`: the newest Python packages, pinned by version and hash."""

from __future__ import annotations

import sys
import tempfile

from vmimage import PROJECT
from vmimage.commands.session import errors_shown
from vmimage.util.console import Console
from vmimage.util.run import run


def lock(console: Console) -> None:
    """Write requirements.txt and requirements-build.txt anew: versions and hashes, no locations."""
    common = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url"]
    common += ["--no-emit-find-links", "--no-annotate", "--no-header", "--upgrade", "--quiet"]
    compile_ = [sys.executable, "-m", "uv", "pip", "compile", *common]
    # python-hcl2 3, which packerpy needs, is published as source only; setuptools builds it.
    wheels = ["--only-binary", ":all:", "--no-binary", "python-hcl2"]
    with console.stage("lock", "requirements.txt") as step:
        run([*compile_, *wheels, "--extra", "dev", "pyproject.toml", "-o", "requirements.txt"], cwd=PROJECT)
        with tempfile.NamedTemporaryFile("w", suffix=".in") as wanted:
            wanted.write("setuptools\n")
            wanted.flush()
            run([*compile_, *wheels, wanted.name, "-o", "requirements-build.txt"], cwd=PROJECT)
        step.outcome = "run `./bootstrap` to install them"


def run_lock() -> None:
    """Lock, and show what is wrong."""
    console = Console()
    with errors_shown(console):
        lock(console)
