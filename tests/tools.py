"""kubectl and helm for tests, by the project's own pins."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vmimage import PROJECT


@functools.cache
def _fetched() -> dict[str, str]:
    argv = [sys.executable, "-m", "invoke", "fetch", "toolbox", "--json"]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return {event["name"]: event["path"] for event in events if event["event"] == "file"}


def pinned_tools(folder: Path) -> Path:
    """Return a folder with `kubectl` and `helm` in it; skips the test where they cannot be had."""
    found = _fetched()
    if not found:
        pytest.skip("kubectl and helm cannot be fetched here")
    into = folder / "tools"
    into.mkdir(exist_ok=True)
    for name, path in found.items():
        tool = into / name
        tool.write_bytes(Path(path).read_bytes())
        tool.chmod(0o755)
    return into
