"""The Invoke tasks: their names, options and help. The code behind them is in vmimage/commands, bench/ and dev/."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from invoke.context import Context

from dev.tasks import bench, fuzz, lint, lock, schema, test
from vmimage.commands.chosen import options
from vmimage.commands.input_tasks import bundle_inputs
from vmimage.commands.look_tasks import diff, size
from vmimage.commands.positionals import allow_missing_positionals, refuse_wrong_values
from vmimage.commands.release_tasks import rebuild, sign, verify
from vmimage.commands.task import ACCELERATOR, BUNDLE, DEB_MIRROR, IMAGE, JSON, MATRIX, MIRROR, task
from vmimage.util.encoding import use_utf8

# A task imports its command when it is called, so that `invoke --list` stays quick.

__all__ = ["bench", "bundle_inputs", "diff", "fuzz", "lint", "lock", "rebuild", "schema", "sign", "size"]
__all__ += ["test", "verify"]

use_utf8()
allow_missing_positionals()
refuse_wrong_values()

MACHINE = {
    "host": "address of the machine (default 127.0.0.1)",
    "host-key": "fingerprint of the machine's host key (SHA256:…), if the key is unknown or has changed",
    "ssh-key": "your private key (default: those that ssh finds)",
    "ssh-port": "port of ssh at that address (default 2222)",
}


@task(
    positional=["image"],
    optional=["image"],
    iterable=["mirror"],
    help={
        "image": IMAGE,
        "mirror": MIRROR,
        "deb-mirror": DEB_MIRROR,
        "bundle": BUNDLE,
        "accelerator": ACCELERATOR,
        "matrix": MATRIX,
        "from_": "do this stage or provision step, and everything after it, again: base, bake, 50-k3s, verify, …",
        "keep-failed": "keep the disk of a machine that failed, with a script that starts it and lets you in",
        "recheck": "compare the bytes of every cached result that is used; make those that differ again",
        "all_": "build every image of images.yaml",
        "gate": "release no image with vulnerabilities that Debian has mended, see docs/building.md",
        "security-data": "file or URL with Debian's security tracker, for --gate",
        "sign": "your ssh key (or its .pub, if ssh-agent has it) that the release is signed with",
        "jobs": "with --all: number of images that are built at the same time (default 1)",
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
    gate: bool = False,
    security_data: str | None = None,
    sign: str | None = None,
    bundle: str | None = None,
    json: bool = False,
) -> None:
    """Build, verify and release an image (all stages)."""
    from vmimage.commands.build import build, build_every

    chosen = options(
        mirrors=mirror or (), debian_mirror=deb_mirror, bundle=bundle, accelerator=accelerator, sign=sign,
        security_data=security_data,
    )  # fmt: skip
    chosen = replace(chosen, start=from_, keep_failed=keep_failed, recheck=recheck, gate=gate)
    if all_:
        build_every(image, chosen, jobs=jobs, matrix=matrix, json=json)
    else:
        build(image, chosen, matrix=matrix, json=json)


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
    from vmimage.commands.plan import show_plan

    show_plan(image, options(mirrors=mirror or (), debian_mirror=deb_mirror), json=json)


@task(
    positional=["image"],
    optional=["image"],
    iterable=["mirror"],
    help={"image": IMAGE, "mirror": MIRROR, "json": JSON},
)
def fetch(_: Context, image: str | None = None, mirror: list[str] | None = None, json: bool = False) -> None:
    """Download the pinned files of an image and verify them."""
    from vmimage.commands.fetch import fetch_pins

    fetch_pins(image, options(mirrors=mirror or ()), json=json)


@task(
    positional=["image"],
    optional=["image"],
    iterable=["mirror"],
    help={"image": IMAGE, "output": "the file to write (default update.tar)", "mirror": MIRROR, "json": JSON},
)
def bundle(
    _: Context,
    image: str | None = None,
    output: str = "update.tar",
    mirror: list[str] | None = None,
    json: bool = False,
) -> None:
    """Write newer k3s, kubectl and helm to one file."""
    from vmimage.commands.bundle import make_bundle

    make_bundle(image, options(mirrors=mirror or ()), Path(output).absolute(), json=json)


@task(name="list", help={"json": JSON})
def list_(_: Context, json: bool = False) -> None:
    """List images, and the releases in dist/."""
    from vmimage.commands.list_releases import list_all

    list_all(options(), json=json)


@task(help={"accelerator": ACCELERATOR, "json": JSON})
def doctor(_: Context, accelerator: str | None = None, json: bool = False) -> None:
    """Examine this host: tools, accelerator, memory, disk space."""
    from vmimage.commands.doctor import examine_host

    examine_host(options(accelerator=accelerator), json=json)


@task(
    positional=["image"],
    optional=["image"],
    help={
        "image": IMAGE,
        "version": "a version in dist/ (default: the latest)",
        "as_": "give the machine the hardware of this hypervisor: kvm (default), virtualbox, vmware, hyperv",
        "firmware": "bios (default) or uefi",
        "ssh-key": "public key that may log in (default: yours)",
        "disk": "file that keeps changes; it is made if it does not exist",
        "seed": "a seed that `invoke seed` wrote, instead of one with your key",
        "isolated": "the machine reaches no network and not this host; the forwarded ports still lead in",
        "ssh-port": "port on localhost for ssh (default 2222)",
        "http-port": "port on localhost for http (default 8080)",
        "https-port": "port on localhost for https (default 8443)",
        "kubernetes-port": "port on localhost for Kubernetes (default 6443)",
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
    isolated: bool = False,
    accelerator: str | None = None,
) -> None:
    """Start a released image in QEMU, with ports on localhost."""
    from vmimage.commands.run_image import run_image

    run_image(
        image,
        version,
        options(accelerator=accelerator),
        like=as_,
        firmware=firmware,
        ports=(ssh_port, http_port, https_port, kubernetes_port),
        ssh_key=ssh_key,
        disk=disk,
        seed=seed,
        isolated=isolated,
    )


@task(
    positional=["host_dir", "guest_dir"],
    optional=["guest_dir"],
    iterable=["follow_link", "exclude"],
    help={
        "host-dir": "a directory of this host",
        "guest-dir": "where it appears in the machine (default /home/dev/NAME)",
        "read-only": "refuse every change from the machine",
        "follow-link": "LINK=TARGET: serve this link of the directory as its target; may be given again",
        "notify": "touch changed files in the machine, for programs there that wait for file events",
        "sync": "copy instead of mounting, and copy what changes here: as fast as the machine's own files",
        "exclude": "with --sync: a pattern as in .gitignore of what is not copied; may be given again",
        **MACHINE,
    },
)
def share(
    _: Context,
    host_dir: str,
    guest_dir: str | None = None,
    read_only: bool = False,
    follow_link: list[str] | None = None,
    notify: bool = False,
    sync: bool = False,
    exclude: list[str] | None = None,
    ssh_key: str | None = None,
    ssh_port: int = 2222,
    host: str = "127.0.0.1",
    host_key: str | None = None,
) -> None:
    """Mount or copy a directory of this host in a running machine."""
    from vmimage.commands.share import Wanted, share_directory
    from vmimage.commands.where import Where

    wanted = Wanted(read_only, notify, sync, follow_link or [], exclude or [])
    share_directory(host_dir, guest_dir, Where(host, ssh_port, ssh_key, host_key), options(), wanted)


@task(help={"json": JSON})
def cache(_: Context, json: bool = False) -> None:
    """Show size, age and last use of what is cached."""
    from vmimage.commands.cache import show_cache

    show_cache(options(), json=json)


@task(
    help={
        "keep": "remove the least recently used results, until the cache has this size: 10G",
        "releases": "remove the releases in dist/, too",
    }
)
def clean(_: Context, keep: str = "", releases: bool = False) -> None:
    """Remove cached results, all or down to --keep SIZE."""
    from vmimage.commands.cache import clean_cache

    clean_cache(options(), keep=keep, releases=releases)


@task(
    iterable=["ssh_key"],
    help={
        "ssh-key": "public key that may log in (default: yours); may be given again",
        "output": "the file to write (default seed.iso)",
        "hostname": "name of the machine (default dev-env)",
        "user-data": "a cloud-config with more settings",
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
    """Write a disk that gives your ssh key to a machine."""
    from vmimage.commands.seed import write_a_seed

    write_a_seed(ssh_key or [], Path(output).absolute(), hostname=hostname, user_data=user_data, force=force)


@task(
    help={
        "context": "name of the context (default dev-env)",
        "kubeconfig": "the file to change (default: the one that kubectl writes to)",
        "use": "make it the current context",
        "remove": "remove the context",
        "show": "print the machine's kubeconfig, and change nothing",
        "force": "replace or remove entries of this name that do not belong to this machine",
        **MACHINE,
        "kubernetes-port": "port of Kubernetes at that address (default 6443)",
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
    from vmimage.commands.kubeconfig import add_context, remove_context
    from vmimage.commands.where import Where

    where = Where(host, ssh_port, ssh_key, host_key, kubernetes_port)
    if remove:
        remove_context(context, where, options(), kubeconfig=kubeconfig, force=force)
    else:
        add_context(context, where, options(), kubeconfig=kubeconfig, use=use, show=show, force=force)


@task(
    positional=["pin"],
    iterable=["pin", "upstream", "mirror"],
    help={
        "pin": "a pin of images.yaml, or PIN=VERSION for this version; several may be given (default: all)",
        "check": "change nothing; exit with 7 if there are newer versions",
        "upstream": "OLD=NEW: look up at NEW what begins with the URL OLD; may be given again",
        "mirror": "directory or URL with pinned files, which is tried first for archives; may be given again",
        "json": JSON,
    },
)
def update(
    _: Context,
    pin: list[str] | None = None,
    check: bool = False,
    upstream: list[str] | None = None,
    mirror: list[str] | None = None,
    json: bool = False,
) -> None:
    """Pin newer k3s, kubectl and helm in images.yaml."""
    from vmimage.commands.update.command import update_pins

    update_pins(pin or [], options(upstreams=upstream or (), mirrors=mirror or ()), check=check, json=json)
