"""Invoke tasks: parse arguments, call vmimage, show errors. See `invoke --list` and `invoke --help TASK`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task as invoke_task

from bench.build import DEFAULT_IMAGE, bench_build
from bench.export import bench_export
from dev.lint import SCHEMA, schema_text
from dev.lint import lint as run_lint
from dev.lint import lock as run_lock
from vmimage import PROJECT, pipeline
from vmimage.access import kubeconfig as merging
from vmimage.access.login import Address, log_in
from vmimage.access.seed import existing_seed, make_seed
from vmimage.access.share import find_private_key, make_share, run_share
from vmimage.commands import cache as care
from vmimage.commands.build_all import build_all
from vmimage.commands.bundle import write_bundle
from vmimage.commands.doctor import examine
from vmimage.commands.run_image import find_public_keys, machine_like, run_release
from vmimage.commands.session import allow_missing_positionals, errors_shown, session
from vmimage.commands.size.report import show_size
from vmimage.spec.load import load_spec
from vmimage.stages.bake.stage import BakeStage
from vmimage.stages.base import BaseStage
from vmimage.stages.export import ExportStage
from vmimage.stages.fetch import fetch as fetch_files
from vmimage.stages.release import dist as releasing
from vmimage.stages.verify.stage import verify_file
from vmimage.util.console import Console, human_bytes
from vmimage.util.errors import HostError, InputError
from vmimage.util.settings import options
from vmimage.vm.accelerator import find_accelerator
from vmimage.vm.forwards import FORWARDS
from vmimage.vm.profiles import HYPERVISORS

allow_missing_positionals()

# Short flags would be whichever letters are free: `-h` would be `--ssh-port`.
task = partial(invoke_task, auto_shortflags=False)

MIRROR = "directory or URL with pinned files, tried first; may be given again"
DEB_MIRROR = "URL of a Debian mirror, or a whole `deb …` line"
ACCELERATOR = "kvm or tcg; found by running guest code when not given"
JSON = "JSON lines on standard output, for machines"
MACHINE = "where the machine answers ssh"
HOST_KEY = "fingerprint of the machine's host key (SHA256:…), where it is not known or another than before"
PRIVATE_KEY = "your private key, if it is not one that ssh would find"
IMAGE = "an image of images.yaml; the default one when not given"
PORT = "port on localhost"
MATRIX = "`full` boots every machine that a format is for; without it each file is booted once"


def full_matrix(matrix: str) -> bool:
    """Read `--matrix`."""
    if matrix not in ("default", "full"):
        raise InputError(f"--matrix {matrix}: unknown", hint="default or full")
    return matrix == "full"


@task(
    positional=["image"],
    optional=["image"],
    iterable=["mirror"],
    help={
        "image": IMAGE,
        "mirror": MIRROR,
        "deb-mirror": DEB_MIRROR,
        "accelerator": ACCELERATOR,
        "matrix": MATRIX,
        "from_": "do this stage, or provision step, and all behind it again: base, bake, 50-k3s, verify, …",
        "keep-failed": "keep the disk of a machine that failed, with a script that starts it",
        "recheck": "compare the bytes of all cached results that are used with what was made",
        "all_": "build every image of images.yaml",
        "jobs": "with --all: so many images at the same time",
        "json": JSON,
    },
)
def build_image(
    _: Context,
    image: str | None = None,
    mirror: list[str] | None = None,
    deb_mirror: str | None = None,
    accelerator: str | None = None,
    matrix: str = "default",
    from_: str = "",
    keep_failed: bool = False,
    recheck: bool = False,
    all_: bool = False,
    jobs: int = 1,
    json: bool = False,
) -> None:
    """Build, verify and release an image (all stages)."""
    chosen = options(mirrors=mirror or (), debian_mirror=deb_mirror, accelerator=accelerator)
    chosen = replace(chosen, start=from_, keep_failed=keep_failed, recheck=recheck)
    with session(chosen, json_lines=json, log="build-all" if all_ else "build-image") as (console, store):
        chosen = replace(chosen, full_matrix=full_matrix(matrix))
        if all_:
            if image or jobs < 1:
                raise InputError("--all goes with no image, and --jobs with 1 or more", hint="invoke build-image --all")
            build_all(list(load_spec(chosen.spec).images), jobs, chosen.arguments, console)
            return
        done = pipeline.build_image(image, chosen, store, console)
        console.event("result", release=str(done.path), version=done.version, files=done.manifest["files"])
        console.say(f"\nreleased: {done.path}\nstart it: invoke run {done.image}\nlog: {console.log_dir}/run.log")


@task(
    positional=["image"],
    optional=["image"],
    iterable=["mirror"],
    help={"image": IMAGE, "mirror": MIRROR, "deb-mirror": DEB_MIRROR, "json": JSON},
)
def plan(
    _: Context,
    image: str | None = None,
    mirror: list[str] | None = None,
    deb_mirror: str | None = None,
    json: bool = False,
) -> None:
    """Show what a build would do and why; do nothing."""
    chosen = options(mirrors=mirror or (), debian_mirror=deb_mirror)
    with session(chosen, json_lines=json) as (console, store):
        made = pipeline.plan_image(image, chosen)
        for stage, state, why in pipeline.planned(made, chosen, store):
            console.event("plan", image=made.name, stage=stage, state=state, why=why)
            console.say(f"{stage:<8} {state:<7} {why}")


@task(
    positional=["image"],
    optional=["image"],
    iterable=["mirror"],
    help={"image": IMAGE, "mirror": MIRROR, "json": JSON},
)
def fetch(_: Context, image: str | None = None, mirror: list[str] | None = None, json: bool = False) -> None:
    """Get the pinned files of an image, verified."""
    chosen = options(mirrors=mirror or ())
    with session(chosen, json_lines=json, log="fetch") as (console, store):
        files = pipeline.plan_image(image, chosen).files
        with console.stage("fetch", f"{len(files)} pinned files") as step:
            paths = fetch_files(files, store, step)
        for name, path in paths.items():
            console.event("file", name=name, path=str(path))
            console.say(f"{name}: {path}")


@task(
    positional=["image"],
    optional=["image"],
    iterable=["mirror"],
    help={"image": IMAGE, "output": "the file to write", "mirror": MIRROR, "json": JSON},
)
def bundle(
    _: Context,
    image: str | None = None,
    output: str = "update.tar",
    mirror: list[str] | None = None,
    json: bool = False,
) -> None:
    """Write newer k3s, kubectl and helm to one file."""
    chosen = options(mirrors=mirror or ())
    with session(chosen, json_lines=json, log="bundle") as (console, store):
        made = pipeline.plan_image(image, chosen)
        with console.stage("fetch", f"{len(made.files)} pinned files") as step:
            paths = fetch_files(made.files, store, step)
        to = Path(output).absolute()
        digest = write_bundle(made, paths, to)
        console.event("result", path=str(to), sha256=digest)
        console.say(f"written: {to}\nin the machine: sudo dev-env update --from {to.name} --sha256 {digest}")


@task(
    positional=["file"],
    help={"file": "an image file", "accelerator": ACCELERATOR, "matrix": MATRIX, "json": JSON},
)
def verify(_: Context, file: str, accelerator: str | None = None, matrix: str = "default", json: bool = False) -> None:
    """Boot an image file and run the checks inside it."""
    chosen = options(accelerator=accelerator)
    with session(chosen, json_lines=json, log="verify") as (console, store):
        chosen = replace(chosen, full_matrix=full_matrix(matrix))
        verdict = verify_file(Path(file), chosen, store, console)
        console.event("result", verdict=verdict)
        console.say(f"passed; verdict, consoles and screenshots: {console.log_dir}/verify")


@task(name="list", help={"json": JSON})
def list_(_: Context, json: bool = False) -> None:
    """List images, and the releases in dist/."""
    chosen = options()
    with session(chosen, json_lines=json) as (console, _store):
        spec = load_spec(chosen.spec)
        found = releasing.releases(chosen.dist)
        for name, image in spec.images.items():
            mark = " (default)" if name == spec.default else ""
            console.event("image", name=name, summary=image.summary, default=name == spec.default)
            console.say(f"{name}{mark}: {image.summary}")
            latest = (chosen.dist / name / "latest").resolve().name
            for release in (release for release in found if release.image == name):
                mark = "  latest" if release.version == latest else ""
                console.event("release", image=name, version=release.version, path=str(release.path), latest=bool(mark))
                for file in release.manifest["files"].values():
                    path = release.path / file["name"]
                    console.say(f"  {release.version}  {human_bytes(file['bytes']):>9}  {path}{mark}")


@task(help={"accelerator": ACCELERATOR, "json": JSON})
def doctor(_: Context, accelerator: str | None = None, json: bool = False) -> None:
    """Examine this host: tools, accelerator, disk space."""
    chosen = options(accelerator=accelerator)
    with session(chosen, json_lines=json) as (console, store):
        bad = []
        for finding in examine(store.root, chosen.accelerator):
            console.event("finding", **vars(finding))
            console.say(f"{finding.mark:<3} {finding.subject:<22} {finding.state:<38} {finding.why}")
            if finding.mark == "BAD":
                bad.append(f"{finding.subject}: {finding.state}\n    {finding.remedy}")
        if bad:
            raise HostError("\n".join(bad), hint="`./bootstrap` installs missing packages")


@task(
    positional=["image"],
    optional=["image"],
    help={
        "image": IMAGE,
        "version": "a version in dist/; the latest when not given",
        "as_": f"the hypervisor to be like: {', '.join(HYPERVISORS)}",
        "firmware": "bios or uefi",
        "ssh-key": "public key that may log in; your own when not given",
        "disk": "file that keeps changes; made if it is not there",
        "seed": "what `invoke seed` wrote, instead of a seed with your key",
        "ssh-port": PORT,
        "http-port": PORT,
        "https-port": PORT,
        "kubernetes-port": PORT,
        "accelerator": ACCELERATOR,
    },
)
def run(
    _: Context,
    image: str | None = None,
    version: str | None = None,
    as_: str = "kvm",
    firmware: str = "bios",
    ssh_key: str | None = None,
    disk: str | None = None,
    seed: str | None = None,
    ssh_port: int = 2222,
    http_port: int = 8080,
    https_port: int = 8443,
    kubernetes_port: int = 6443,
    accelerator: str | None = None,
) -> None:
    """Start a released image in QEMU, ports on localhost."""
    chosen = options(accelerator=accelerator)
    with session(chosen) as (console, store):
        profile, kind = machine_like(as_, firmware)
        name, _image = load_spec(chosen.spec).image(image)
        run_release(
            releasing.choose(chosen.dist, name, version),
            chosen,
            store,
            console,
            profile=profile,
            firmware=kind,
            ports=dict(zip(FORWARDS, (ssh_port, http_port, https_port, kubernetes_port), strict=True)),
            public_keys=[] if seed else find_public_keys(ssh_key, Path.home() / ".ssh"),
            disk=Path(disk).absolute() if disk else None,
            seed=existing_seed(seed) if seed else None,
        )


@task(
    positional=["host_dir", "guest_dir"],
    optional=["guest_dir"],
    help={
        "host-dir": "a directory of this host",
        "guest-dir": "where it appears in the machine; /home/dev/NAME when not given",
        "read-only": "refuse every change",
        "follow-links": "serve also what links out of the directory lead to now",
        "notify": "touch changed files in the machine, for programs there that wait for file events",
        "ssh-key": PRIVATE_KEY,
        "ssh-port": PORT,
        "host": MACHINE,
        "host-key": HOST_KEY,
    },
)
def share(
    _: Context,
    host_dir: str,
    guest_dir: str | None = None,
    read_only: bool = False,
    follow_links: bool = False,
    notify: bool = False,
    ssh_key: str | None = None,
    ssh_port: int = 2222,
    host: str = "127.0.0.1",
    host_key: str | None = None,
) -> None:
    """Mount a host directory in a running machine."""
    chosen = options()
    with session(chosen) as (console, _store):
        run_share(
            make_share(host_dir, guest_dir, read_only=read_only, follow_links=follow_links, notify=notify),
            Address(host=host, port=ssh_port, key=find_private_key(ssh_key), host_key=host_key),
            chosen.known_hosts,
            console,
        )


@task(help={"json": JSON})
def cache(_: Context, json: bool = False) -> None:
    """Show size, age and last use of what is cached."""
    with session(options(), json_lines=json) as (console, store):
        found = care.entries(store)
        needed = care.needed_by_releases(store, options().dist)
        for entry in found:
            console.event("entry", **vars(entry), released=entry.name in needed)
        console.say(care.table(care.summary(found, time.time())))


@task(
    help={
        "keep": "only until the cache has this size, the least recently used first: 10G",
        "releases": "remove dist/ too",
    }
)
def clean(_: Context, keep: str = "", releases: bool = False) -> None:
    """Remove cached results, all or down to --keep SIZE."""
    chosen = options()
    with session(chosen) as (console, store):
        limit = care.parse_size(keep) if keep else 0
        needed = care.needed_by_releases(store, chosen.dist) if keep else ()
        removed = care.clean(store, limit, needed)
        if not keep:
            care.remove_rest(store)
        for entry in removed:
            console.say(f"removed {entry.name}, {human_bytes(entry.size)}")
        left = care.entries(store)
        console.say(f"{human_bytes(sum(entry.size for entry in left))} are left in {store.root}")
        if releases and chosen.dist.exists():
            shutil.rmtree(chosen.dist)
            console.say(f"removed {chosen.dist}")


@task(
    iterable=["ssh_key"],
    help={
        "ssh-key": "public key that may log in; may be given again; your own when not given",
        "output": "the file to write",
        "hostname": "the machine's name",
        "user-data": "a cloud-config with more",
        "force": "replace the file if it exists",
    },
)
def seed(
    _: Context,
    ssh_key: list[str] | None = None,
    output: str = "seed.iso",
    hostname: str = "dev-env",
    user_data: str | None = None,
    force: bool = False,
) -> None:
    """Write a disk that gives a machine your ssh key."""
    console = Console()
    with errors_shown(console):
        home = Path.home() / ".ssh"
        named: list[str | None] = [*(ssh_key or [])] or [None]
        keys = [key for given in named for key in find_public_keys(given, home)]
        extra = Path(user_data).expanduser() if user_data else None
        to = Path(output).absolute()
        make_seed(to, public_keys=keys, hostname=hostname, user_data=extra, force=force)
        console.say(f"written: {to}; attach it to the machine as a CD or a second disk")


@task(
    help={
        "context": "the name that it gets",
        "kubeconfig": "file to change; the one that kubectl writes to when not given",
        "use": "make it the current context",
        "remove": "take it out again",
        "show": "write the machine's kubeconfig to standard output, and change nothing",
        "force": "replace an entry of that name which leads elsewhere",
        "host": MACHINE,
        "host-key": HOST_KEY,
        "ssh-port": PORT,
        "kubernetes-port": PORT,
        "ssh-key": PRIVATE_KEY,
    },
)
def kubeconfig(
    _: Context,
    context: str = "dev-env",
    kubeconfig: str | None = None,
    use: bool = False,
    remove: bool = False,
    show: bool = False,
    force: bool = False,
    host: str = "127.0.0.1",
    host_key: str | None = None,
    ssh_port: int = 2222,
    kubernetes_port: int = 6443,
    ssh_key: str | None = None,
) -> None:
    """Add a running machine to your kubeconfig."""
    chosen = options()
    with session(chosen) as (console, _store):
        ours: merging.Config = {}
        if not remove:
            address = Address(host=host, port=ssh_port, key=find_private_key(ssh_key), host_key=host_key)
            with log_in(address, chosen.known_hosts) as client:
                ours = merging.renamed(merging.fetch(client), context, merging.server_url(host, kubernetes_port))
        if show:
            console.say(merging.text_of(ours))
            return
        path = merging.chosen_file(kubeconfig, os.environ, Path.home())
        with merging.locked(path):
            present = merging.read(path)
            taken_out = merging.removed(present, context)
            wanted = taken_out if remove else merging.merged(present, ours, force=force, use=use)
            changed = wanted != present
            backup = merging.write(path, wanted) if changed else None
        before = f" (as it was: {backup})" if backup else ""
        console.say(f"changed: {path}{before}" if changed else f"{path} is as it should be")
        if not remove:
            console.say(f"try: kubectl --context {context} get nodes")


@task(
    positional=["image"],
    optional=["image"],
    help={
        "image": IMAGE,
        "version": "a version in dist/; the latest when not given, or what is baked if nothing is released",
        "output": "draw it: an SVG file to write",
        "json": JSON,
    },
)
def size(
    _: Context, image: str | None = None, version: str | None = None, output: str | None = None, json: bool = False
) -> None:
    """Tell what the bytes of an image are."""
    chosen = options()
    with session(chosen, json_lines=json) as (console, store):
        to = Path(output).absolute() if output else None
        made = pipeline.plan_image(image, chosen)
        bake = pipeline.the_stage(pipeline.stages_of(made, pipeline.build_context(chosen, store)), BakeStage)
        show_size(bake, load_spec(chosen.spec), chosen.dist, console, version=version, output=to)


@task(
    positional=["what", "image"],
    optional=["image"],
    help={
        "what": "export: our writers against qemu-img; build: our builds against plain Packer",
        "image": f"an image of images.yaml; when not given, the default one, for `build` {DEFAULT_IMAGE}",
        "runs": "build: how often each build is measured; the table has medians",
        "output": "build: file for all that was measured, as JSON",
        "json": JSON,
    },
)
def bench(_: Context, what: str, image: str | None = None, runs: int = 3, output: str = "", json: bool = False) -> None:
    """Measure our work against others, side by side."""
    chosen = options()
    with session(chosen, json_lines=json, log=f"bench-{what}" if what == "build" else "") as (console, store):
        if what == "export":
            stages = pipeline.stages_of(pipeline.plan_image(image, chosen), pipeline.build_context(chosen, store))
            bench_export(pipeline.the_stage(stages, ExportStage), store, console)
        elif what == "build":
            made = pipeline.plan_image(image or DEFAULT_IMAGE, chosen)
            to = Path(output).absolute() if output else None
            accelerator = find_accelerator(store.root / "accelerator.json", chosen.accelerator)
            base = pipeline.the_stage(pipeline.stages_of(made, pipeline.build_context(chosen, store)), BaseStage)
            bench_build(made, base, accelerator, console, runs=runs, output=to)
        else:
            raise InputError(f"there is no benchmark {what}", hint="export or build")


@task(
    help={
        "unit": "only what needs no build (about two minutes)",
        "keyword": "only tests that match (pytest -k)",
        "vagrant": "with `vagrant up` of the libvirt box, which takes minutes",
        "real-k3s": "a mirror of k3s's files: dev-env is tested with them, containers included, instead of a stand-in",
        "k3s-version": "with --real-k3s: the version to take from there, whatever its digests, if not the pinned one",
    }
)
def test(
    _: Context,
    unit: bool = False,
    keyword: str = "",
    vagrant: bool = False,
    real_k3s: str = "",
    k3s_version: str = "",
) -> None:
    """Run the tests, with lint and real builds."""
    folders = ["tests/unit"] if unit else ["tests/unit", "tests/e2e"]
    select = ["-k", keyword] if keyword else []
    with errors_shown(Console()):
        if k3s_version and not real_k3s:
            raise InputError("--k3s-version is for --real-k3s", hint="invoke test --real-k3s MIRROR --k3s-version …")
    if real_k3s:
        os.environ["VMIMAGE_TEST_REAL_K3S"] = real_k3s if "://" in real_k3s else str(Path(real_k3s).absolute())
        os.environ["VMIMAGE_TEST_K3S_VERSION"] = k3s_version
    if vagrant:
        os.environ["VMIMAGE_TEST_VAGRANT"] = "1"
    os.chdir(PROJECT)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *folders, *select])  # noqa: S606 - its exit code is ours


@task()
def lint(_: Context) -> None:
    """Check the project: ruff, mypy, shellcheck, packer."""
    console = Console()
    with errors_shown(console):
        run_lint(console)


@task()
def schema(_: Context) -> None:
    """Write the JSON schema of images.yaml for editors."""
    SCHEMA.write_text(schema_text())


@task()
def lock(_: Context) -> None:
    """Pin the newest Python packages, with hashes."""
    console = Console()
    with errors_shown(console):
        run_lock(console)
