"""`invoke lint` and `invoke lock`: the project checks and pins itself."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

from vmimage import PROJECT
from vmimage.console import Console
from vmimage.errors import BuildError
from vmimage.host import require
from vmimage.packer import needs_plugins, packer, plugins_ready, write_plugins_file
from vmimage.plan import make_plan
from vmimage.ports import Ports
from vmimage.render import render
from vmimage.run import run, tail
from vmimage.spec import Spec, load_spec
from vmimage.ssh import make_key
from vmimage.stages.bake import OVERLAY, PAYLOAD, packer_values

PYTHON = ["tasks.py", "vmimage", "tests", "provision"]
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


def shell_scripts() -> list[Path]:
    """Return every shell script of the project, known by its first line."""
    folders = [PROJECT / ".ci", PROJECT / "templates" / "peer"]
    paths = [PROJECT / "bootstrap", *(path for folder in folders for path in folder.iterdir())]
    paths += (PROJECT / "provision").rglob("*")
    paths += (PROJECT / "tests").rglob("*.sh")
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
    version = require(["packer"])["packer"]
    said = []
    for name in spec.images:
        tools = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "0")
        plan = make_plan(spec, name, project=PROJECT, tools=tools, today=date.today())  # noqa: DTZ011 - any day does
        with tempfile.TemporaryDirectory(prefix="vmimage-lint-") as scratch:
            folder = Path(scratch)
            for file in (OVERLAY, PAYLOAD):
                (folder / file).touch()
            ports = Ports(ssh=20000, vnc=25000)
            values = packer_values(plan.scripts, folder, folder, make_key(folder), "tcg", ports, 22000)
            (folder / "image.pkr.hcl").write_text(render(PROJECT / "packer" / "image.pkr.hcl.j2", values))
            write_plugins_file(PROJECT / "packer", folder, version)
            if needs_plugins(version) and not plugins_ready(folder, version):
                packer("init", folder, timeout=300)
            done = packer("validate", folder, timeout=120)
            if done.returncode:
                said.append(f"{name}: {done.output}")
    return "\n".join(said)


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
