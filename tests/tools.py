"""kubectl and helm for tests, by the project's own pins; what is in a seed; a step that nobody sees."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pycdlib
import pytest

from vmimage import PROJECT
from vmimage.console import Step


def step_into(said: list[str]) -> Step:
    """Return a step of a stage that notes what it is told."""
    return Step(lambda event, text: said.append(text), None, None)


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


def seed_texts(seed: Path) -> dict[str, str]:
    """Return the files of a NoCloud seed."""
    iso = pycdlib.PyCdlib()
    iso.open(str(seed))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    texts = {}
    for name in ("meta-data", "user-data"):
        with iso.open_file_from_iso(rr_path=f"/{name}") as file:
            texts[name] = file.read().decode()
    iso.close()
    return texts
