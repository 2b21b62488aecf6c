"""The Invoke tasks that only developers of this project start."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task as invoke_task

from vmimage.commands.chosen import options

task = partial(invoke_task, auto_shortflags=False)
JSON = "JSON lines on standard output, for machines"


@task(
    positional=["what", "image"],
    optional=["image"],
    help={
        "what": "export: our writers against qemu-img; build: our builds against plain Packer",
        "image": "an image of images.yaml; when not given, the default one, for `build` toolbox",
        "runs": "build: how often each build is measured; the table has medians",
        "output": "build: file for all that was measured, as JSON",
        "json": JSON,
    },
)
def bench(_: Context, what: str, image: str | None = None, runs: int = 3, output: str = "", json: bool = False) -> None:
    """Measure our work against others, side by side."""
    from bench.command import bench as run_bench

    run_bench(what, image, options(), runs=runs, output=Path(output).absolute() if output else None, json=json)


@task(
    help={
        "unit": "only what starts no program (seconds)",
        "host": "that, and what needs the programs of this host, but no build (minutes)",
        "keyword": "only tests that match (pytest -k)",
        "vagrant": "with `vagrant up` of the libvirt box, which takes minutes",
        "real-k3s": "a mirror of k3s's files: dev-env is tested with them, containers included, instead of a stand-in",
        "k3s-version": "with --real-k3s: the version to take from there, whatever its digests, if not the pinned one",
    }
)
def test(
    _: Context,
    unit: bool = False,
    host: bool = False,
    keyword: str = "",
    vagrant: bool = False,
    real_k3s: str = "",
    k3s_version: str = "",
) -> None:
    """Run the tests, with lint and real builds."""
    from dev.test import run_tests

    run_tests(unit=unit, host=host, keyword=keyword, vagrant=vagrant, real_k3s=real_k3s, k3s_version=k3s_version)


@task(help={"minutes": "for how long"})
def fuzz(_: Context, minutes: float = 10.0) -> None:
    """Try the readers of foreign files with mutated ones."""
    from dev.test import run_fuzz

    run_fuzz(minutes)


@task()
def lint(_: Context) -> None:
    """Check the project: ruff, mypy, shellcheck, packer."""
    from dev.lint import run_lint

    run_lint()


@task()
def schema(_: Context) -> None:
    """Write the JSON schema of images.yaml for editors."""
    from dev.lint import write_schema

    write_schema()


@task()
def lock(_: Context) -> None:
    """Pin the newest Python packages, with hashes."""
    from dev.lock import run_lock

    run_lock()
