"""Invoke tasks: parse arguments, call vmimage, show errors. See `invoke --list` and `invoke --help TASK`."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from vmimage import PROJECT, host, pipeline
from vmimage.console import Console, human_bytes
from vmimage.errors import HostError, InputError, VmimageError
from vmimage.lint import SCHEMA, schema_text
from vmimage.lint import lint as run_lint
from vmimage.lint import lock as run_lock
from vmimage.machine import FIRMWARES
from vmimage.run import orderly_signals
from vmimage.runner import PORTS, find_public_keys, run_release
from vmimage.settings import options
from vmimage.spec import load_spec
from vmimage.stages import release as releasing
from vmimage.stages.fetch import fetch as fetch_files
from vmimage.store import Store, remove_tree

MIRROR = "directory or URL with pinned files, tried first; may be given again"
DEB_MIRROR = "URL of a Debian mirror, or a whole `deb …` line"
ACCELERATOR = "kvm or tcg; found by running guest code when not given"
JSON = "JSON lines on standard output, for machines"
IMAGE = "an image of images.yaml"


@contextlib.contextmanager
def session(name: str, *, json_lines: bool = False, log: Path | None = None) -> Iterator[Console]:
    """Show errors as people and machines need them, and leave with their exit codes."""
    console = Console(log_dir=log, json_lines=json_lines)
    where = f"\nlog: {log / 'run.log'}" if log else ""
    try:
        with orderly_signals():
            console.event("run", task=name, argv=sys.argv[1:])
            yield console
    except VmimageError as error:
        console.event("error", message=error.message, hint=error.hint, exit_code=error.exit_code)
        hint = f"\n\n{error.hint}" if error.hint else ""
        raise Exit(f"\n{error.message}{hint}{where}", code=error.exit_code) from None
    except KeyboardInterrupt:
        raise Exit(f"\nstopped; nothing half-made was kept{where}", code=130) from None
    except OSError as error:
        logging.getLogger("vmimage").exception("unexpected")
        console.event("error", message=str(error), hint="", exit_code=3)
        raise Exit(f"\n{error}{where}", code=3) from None


def log_folder(store: Store, name: str) -> Path:
    """Return the folder for the log of one run; names sort by time."""
    return store.root / "logs" / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{name}-{os.getpid()}"


@task(
    positional=["image"],
    optional=["image"],
    iterable=["mirror"],
    help={"image": f"{IMAGE}; the default one when not given", "mirror": MIRROR, "deb-mirror": DEB_MIRROR,
          "accelerator": ACCELERATOR, "json": JSON},
)  # fmt: skip
def build_image(
    _: Context,
    image: str | None = None,
    mirror: list[str] | None = None,
    deb_mirror: str | None = None,
    accelerator: str | None = None,
    json: bool = False,
) -> None:
    """Build, verify and release an image: fetch, base, bake, export, verify, release."""
    chosen = options(mirrors=mirror or (), debian_mirror=deb_mirror, accelerator=accelerator)
    with session("build-image", json_lines=json) as early:
        store = pipeline.open_store(chosen)
        early.event("cache", path=str(store.root))
    with session("build-image", json_lines=json, log=log_folder(store, image or "default")) as console:
        done = pipeline.build_image(image, chosen, store, console)
        console.event("result", release=str(done.path), version=done.version, files=done.manifest["files"])
        console.say(f"\nreleased: {done.path}\nstart it: invoke run {done.image}\nlog: {console.log_dir}/run.log")


@task(positional=["image"], optional=["image"], iterable=["mirror"], help={"image": IMAGE, "json": JSON})
def plan(
    _: Context,
    image: str | None = None,
    mirror: list[str] | None = None,
    deb_mirror: str | None = None,
    json: bool = False,
) -> None:
    """Show what a build would do and why, without doing it."""
    chosen = options(mirrors=mirror or (), debian_mirror=deb_mirror)
    with session("plan", json_lines=json) as console:
        made = pipeline.plan_image(image, chosen)
        rows = pipeline.planned(made, pipeline.open_store(chosen))
        for stage, state, why in rows:
            console.event("plan", stage=stage, state=state, why=why)
            console.say(f"{stage:<8} {state:<7} {why}")
        done = releasing.find_release(chosen.dist, made.name, made.export_stage.key)
        console.say(f"release  {'done' if done else 'make':<7} {done.path if done else chosen.dist / made.name}")


@task(
    positional=["image"],
    optional=["image"],
    iterable=["mirror"],
    help={"image": IMAGE, "mirror": MIRROR, "json": JSON},
)
def fetch(_: Context, image: str | None = None, mirror: list[str] | None = None, json: bool = False) -> None:
    """Get the pinned files of an image into the cache, verified."""
    chosen = options(mirrors=mirror or ())
    with session("fetch", json_lines=json) as console:
        store = pipeline.open_store(chosen)
        made = pipeline.plan_image(image, chosen)
        with console.stage("fetch", f"{len(made.files)} pinned files") as step:
            for name, path in fetch_files(made.files, store, step).items():
                console.event("file", name=name, path=str(path))


@task(positional=["file"], help={"file": "an image file", "accelerator": ACCELERATOR, "json": JSON})
def verify(_: Context, file: str, accelerator: str | None = None, json: bool = False) -> None:
    """Boot an image file as its hypervisors would and run the checks of tests/image."""
    chosen = options(accelerator=accelerator)
    with session("verify", json_lines=json) as early:
        store = pipeline.open_store(chosen)
        early.event("cache", path=str(store.root))
    with session("verify", json_lines=json, log=log_folder(store, "verify")) as console:
        verdict = pipeline.verify_file(Path(file), chosen, store, console)
        console.event("result", verdict=verdict)
        console.say(f"passed; verdict, consoles and screenshots: {console.log_dir}/verify")


@task(name="list", help={"json": JSON})
def list_(_: Context, json: bool = False) -> None:
    """List the images of images.yaml, and what dist/ holds."""
    chosen = options()
    with session("list", json_lines=json) as console:
        spec = load_spec(chosen.spec)
        found = releasing.releases(chosen.dist)
        for name, image in spec.images.items():
            mark = " (default)" if name == spec.default else ""
            console.event("image", name=name, summary=image.summary, default=name == spec.default)
            console.say(f"{name}{mark}: {image.summary}")
            latest = (chosen.dist / name / "latest").resolve().name
            for release in (release for release in found if release.image == name):
                console.event("release", image=name, version=release.version, path=str(release.path))
                for file in release.manifest["files"].values():
                    mark = "  latest" if release.version == latest else ""
                    console.say(
                        f"  {release.version}  {human_bytes(file['bytes']):>9}  {release.path / file['name']}{mark}"
                    )


@task(help={"accelerator": ACCELERATOR, "json": JSON})
def doctor(_: Context, accelerator: str | None = None, json: bool = False) -> None:
    """Examine this host: tools and why each is needed, the accelerator that really works, disk space."""
    chosen = options(accelerator=accelerator)
    with session("doctor", json_lines=json) as console:
        store = pipeline.open_store(chosen)
        bad = []
        for finding in host.examine(store.root, chosen.accelerator):
            console.event("finding", **vars(finding))
            console.say(f"{'ok ' if finding.good else 'BAD'} {finding.subject:<22} {finding.state:<38} {finding.why}")
            if not finding.good:
                bad.append(f"{finding.subject}: {finding.remedy}")
        if bad:
            raise HostError("\n".join(bad), hint="`./bootstrap` installs missing packages")


@task(
    positional=["image"],
    help={"image": IMAGE, "version": "a version in dist/; latest when not given", "firmware": "bios or uefi",
          "ssh-key": "public key that may log in; your own when not given", "disk": "file that keeps changes",
          "ssh-port": "port on localhost", "http-port": "port on localhost", "https-port": "port on localhost",
          "kubernetes-port": "port on localhost", "accelerator": ACCELERATOR},
)  # fmt: skip
def run(
    _: Context,
    image: str,
    version: str | None = None,
    firmware: str = "bios",
    ssh_key: str | None = None,
    disk: str | None = None,
    ssh_port: int = 2222,
    http_port: int = 8080,
    https_port: int = 8443,
    kubernetes_port: int = 6443,
    accelerator: str | None = None,
) -> None:
    """Start a released image in QEMU, ports forwarded to localhost, with your ssh key."""
    chosen = options(accelerator=accelerator)
    with session("run") as console:
        kind = next((known for known in FIRMWARES if known == firmware), None)
        if not kind:
            raise InputError(f"--firmware {firmware}: unknown", hint=f"one of {', '.join(FIRMWARES)}")
        run_release(
            releasing.choose(chosen.dist, image, version),
            chosen,
            pipeline.open_store(chosen),
            console,
            firmware=kind,
            ports=dict(zip(PORTS, (ssh_port, http_port, https_port, kubernetes_port), strict=True)),
            public_keys=find_public_keys(ssh_key, Path.home() / ".ssh"),
            disk=Path(disk).absolute() if disk else None,
        )


@task(help={"releases": "remove dist/ too"})
def clean(_: Context, releases: bool = False) -> None:
    """Remove the cache: results, fetched files and logs; releases stay unless you say so."""
    chosen = options()
    with session("clean") as console:
        store = pipeline.open_store(chosen)
        store.sweep()
        for path in sorted(store.root.iterdir()):
            if path.name in ("work", "locks"):
                continue  # a build may be running
            remove_tree(path) if path.is_dir() else path.unlink()
            console.say(f"removed {path}")
        if releases and chosen.dist.exists():
            shutil.rmtree(chosen.dist)
            console.say(f"removed {chosen.dist}")


@task(help={"unit": "only the tests that need no VM (seconds)", "keyword": "only tests that match (pytest -k)"})
def test(context: Context, unit: bool = False, keyword: str = "") -> None:
    """Run the tests: unit tests, lint, and a real build that is broken on purpose in every way that must be noticed."""
    folders = ["tests/unit"] if unit else ["tests/unit", "tests/e2e"]
    select = ["-k", keyword] if keyword else []
    with context.cd(str(PROJECT)):
        os.chdir(PROJECT)
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *folders, *select])  # noqa: S606 - its exit code is ours


@task
def lint(_: Context) -> None:
    """Check the project itself: ruff, mypy, shellcheck, packer validate."""
    with session("lint") as console:
        run_lint(console)


@task
def schema(_: Context) -> None:
    """Write templates/images.schema.json, which editors use to check images.yaml."""
    with session("schema") as console:
        SCHEMA.write_text(schema_text())
        console.say(str(SCHEMA))


@task
def lock(_: Context) -> None:
    """Pin the newest Python packages that pyproject.toml allows, with their hashes, in requirements.txt."""
    with session("lock") as console:
        run_lock(console)
