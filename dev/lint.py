"""`invoke lint` and `invoke schema`: the project checks itself."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

from vmimage import PROJECT
from vmimage.commands.session import errors_shown
from vmimage.host import require
from vmimage.plan import make_plan
from vmimage.spec.load import load_spec
from vmimage.spec.model import Spec
from vmimage.stages.bake.machine import OVERLAY, PAYLOAD, packer_values
from vmimage.stages.bake.packer import packer, prepare_plugins
from vmimage.stages.bake.ports import BakePorts
from vmimage.util.console import Console
from vmimage.util.errors import BuildError
from vmimage.util.render import render
from vmimage.util.run import run, tail
from vmimage.vm.sandbox import sandbox_arguments
from vmimage.vm.ssh import make_key

log = logging.getLogger(__name__)

PYTHON = ["tasks.py", "vmimage", "bench", "dev", "tests", "guest"]
MOST_LINES = 350
SCHEMA = PROJECT / "templates" / "images.schema.json"


def lint(console: Console) -> None:
    """Run every check, and name all that fail.

    Raises:
        BuildError: Some failed.
    """
    checks: dict[str, Callable[[], str]] = {
        "ruff": lambda: _command("ruff", "check", *PYTHON),
        "format": lambda: _command("ruff", "format", "--check", *PYTHON),
        "mypy": lambda: _command("mypy"),
        "imports": _imports,
        "length": _too_long,
        "shellcheck": _shellcheck,
        "schema": _schema,
        "packer": _packer_validate,
    }
    failed = []
    for name, check in checks.items():
        try:
            with console.stage(name, "") as step:
                said = check()
                if said:
                    raise BuildError(f"{name}:{tail(said, 60)}")
                step.outcome = "good"
        except BuildError as error:
            failed.append(error.message)
    if failed:
        raise BuildError("\n".join(failed), hint="`.venv/bin/ruff format` and `ruff check --fix` mend much")


def _command(module: str, *args: str) -> str:
    done = run([sys.executable, "-m", module, *args], cwd=PROJECT, check=False)
    return done.output if done.returncode else ""


def _imports() -> str:
    """Check that imports run downward only: the layers stand in pyproject.toml."""
    call = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = run([sys.executable, "-c", call, "--no-cache"], cwd=PROJECT, check=False)
    return done.output if done.returncode else ""


def _too_long() -> str:
    """Name the Python files that have more lines than a reader keeps in mind."""
    paths = [PROJECT / "tasks.py", *(path for name in PYTHON for path in sorted((PROJECT / name).rglob("*.py")))]
    lengths = {path: len(path.read_text().splitlines()) for path in paths}
    return "\n".join(
        f"{path.relative_to(PROJECT)} has {lines} lines, {MOST_LINES} at most: split it by meaning"
        for path, lines in lengths.items()
        if lines > MOST_LINES
    )


def shell_scripts() -> list[Path]:
    """Return every shell script of the project, known by its first line."""
    folders = [PROJECT / ".ci", PROJECT / "templates" / "peer"]
    paths = [PROJECT / "bootstrap", *(path for folder in folders for path in folder.iterdir())]
    paths += (PROJECT / "provision").rglob("*")
    paths += (path for folder in ("tests", "vmimage") for path in (PROJECT / folder).rglob("*.sh"))
    return sorted(
        path
        for path in paths
        if path.is_file()
        and path.read_bytes()[:40].startswith((b"#!/bin/sh", b"#!/usr/bin/env bash", b"# shellcheck shell=sh"))
    )


def _shellcheck() -> str:
    done = run(["shellcheck", *shell_scripts()], check=False)
    return done.output if done.returncode else ""


def schema_text() -> str:
    """Return the JSON schema of images.yaml, made from the models that check it."""
    return json.dumps(Spec.model_json_schema(), indent=2) + "\n"


def _schema() -> str:
    current = SCHEMA.read_text() if SCHEMA.exists() else ""
    return "" if current == schema_text() else f"{SCHEMA.name} is not what `invoke schema` writes"


def _packer_validate() -> str:
    """Render the Packer template for every image and let this Packer validate it."""
    spec = load_spec(PROJECT / "images.yaml")
    require(["packer"])
    said = []
    for name in spec.images:
        tools = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "0")
        plan = make_plan(spec, name, project=PROJECT, tools=tools, today=date.today())  # noqa: DTZ011 - any day does
        with tempfile.TemporaryDirectory(prefix="vmimage-lint-") as scratch:
            folder = Path(scratch)
            for file in (OVERLAY, PAYLOAD):
                (folder / file).touch()
            ports = BakePorts(ssh=20000, vnc=25000)
            sandbox = sandbox_arguments()
            values = packer_values(plan.scripts, folder, folder, make_key(folder), "tcg", ports, 22000, sandbox)
            (folder / "image.pkr.hcl").write_text(render(PROJECT / "packer" / "image.pkr.hcl.j2", values))
            prepare_plugins(folder, log.info)
            done = packer("validate", folder, timeout=120)
            if done.returncode:
                said.append(f"{name}: {done.output}")
    return "\n".join(said)


def run_lint() -> None:
    """Lint, and show what is wrong."""
    console = Console()
    with errors_shown(console):
        lint(console)


def write_schema() -> None:
    """Write the JSON schema of images.yaml for editors."""
    SCHEMA.write_text(schema_text())
