"""The Invoke tasks for developers of this project only."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context

from vmimage.commands.chosen import options
from vmimage.commands.task import JSON, task


@task(
    positional=["what", "image"],
    optional=["image"],
    help={
        "what": "export: compare our writers with qemu-img; build: compare our builds with plain Packer",
        "image": "an image of images.yaml (default: for `build` toolbox, for `export` the default image)",
        "runs": "build: how often each build is measured; the table shows medians (default 3)",
        "output": "build: file for every measurement, as JSON",
        "json": JSON,
    },
)
def bench(_: Context, what: str, image: str | None = None, runs: int = 3, output: str = "", json: bool = False) -> None:
    """Compare our work with other tools, side by side."""
    from bench.command import bench as run_bench

    run_bench(what, image, options(), runs=runs, output=Path(output).absolute() if output else None, json=json)


@task(
    help={
        "unit": "only tests that start no program (half a minute)",
        "host": "these, and tests that need the programs of this host but no build (two to five minutes)",
        "keyword": "only tests that match (pytest -k)",
        "vagrant": "also test `vagrant up` of the libvirt box, which takes minutes",
        "real-k3s": "test dev-env with the real k3s, from this mirror of its files, instead of a stand-in",
        "k3s-version": "with --real-k3s: another version than the pinned one; its digests are not compared",
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
    """Run the project's tests, with lint and real builds."""
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
    """Pin the newest Python packages by version and hash."""
    from dev.lock import run_lock

    run_lock()
