"""The pipeline: `build_image` is the checklist of the stages, in order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from vmimage import PROJECT, host
from vmimage.checks import DISK_TESTS, test_files
from vmimage.console import Console, human_bytes
from vmimage.disk import RawDisk
from vmimage.errors import HostError, InputError, VerifyError
from vmimage.formats.opened import kind_of
from vmimage.matrix import Boot, boots
from vmimage.plan import Plan, digests, make_plan
from vmimage.profiles import PROFILES
from vmimage.provenance import manifest
from vmimage.run import run
from vmimage.spec import FormatName, load_spec
from vmimage.stages import release as releasing
from vmimage.stages.bake import DISK, make_bake, release_facts
from vmimage.stages.base import make_base
from vmimage.stages.export import make_export
from vmimage.stages.fetch import fetch, stored
from vmimage.stages.release import Release, find_release, make_release
from vmimage.stages.verify import VERDICT, File, Subject, image_facts, opened_disk, require_recorded, verify
from vmimage.store import Result, Store

VERIFY_EDITION = 3
BUILD_TOOLS = ("packer", "qemu-system-x86_64", "qemu-img", "mmdebstrap", "sfdisk", "mkfs.vfat", "mke2fs", "unshare")
PLAN_TOOLS = ("packer", "qemu-img", "mmdebstrap", "mke2fs")
KEPT_LOGS = 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user chose for one run; from arguments, else from the environment (README: settings)."""

    cache: Path
    dist: Path
    mirrors: tuple[str, ...] = ()
    debian_mirror: str | None = None
    accelerator: str | None = None
    full_matrix: bool = False
    spec: Path = PROJECT / "images.yaml"


def plan_image(name: str | None, options: Options) -> Plan:
    """Decide what a build would do; starts nothing but questions to tools."""
    spec = load_spec(options.spec)
    name, image = spec.image(name)
    return make_plan(
        spec,
        name,
        project=PROJECT,
        mirrors=options.mirrors,
        debian_mirrors=host.debian_mirrors(spec.bases[image.base].suite, options.debian_mirror),
        tools={**host.require(PLAN_TOOLS), **{name: version(name) for name in ("deflate", "zstandard")}},
        today=date.today(),  # noqa: DTZ011 - the user's day
    )


def build_image(name: str | None, options: Options, store: Store, console: Console) -> Release:
    """Build, verify and release an image; stages that are done already are not repeated.

    Raises:
        VmimageError: A stage failed; what earlier stages made stays.
    """
    plan = plan_image(name, options)
    if options.accelerator:
        host.known_accelerator(options.accelerator)
    tools = host.require(BUILD_TOOLS)
    host.require_user_namespaces()
    firmware = host.find_uefi()
    check_free_space(store.root)
    console.say(f"{plan.name}: {plan.image.summary} (cache: {store.root})")
    releasing.sweep(options.dist)
    removed = store.sweep()
    if removed:
        console.say(f"removed what a killed run left: {', '.join(removed)}")

    with console.stage("fetch", f"{len(plan.files)} pinned files") as fetching:
        files = fetch(plan.files, store, fetching)
    # After fetch: a KVM that hangs takes seconds to be found out, and what cannot be fetched should be told at once.
    accelerator = host.find_accelerator(store.root / "accelerator.json", options.accelerator)

    with console.stage("base", plan.base_stage.why) as step:
        base = store.get_or_make(
            "base", plan.base_stage.inputs, lambda work: make_base(plan, work, step), on_wait=step.wait
        )
        step.reused(base.cached)

    with console.stage("bake", plan.bake_stage.why) as step:
        bake = store.get_or_make(
            "bake",
            plan.bake_stage.inputs,
            lambda work: make_bake(plan, base.path, files, work, accelerator, step),
            on_wait=step.wait,
        )
        step.reused(bake.cached)

    with console.stage("export", plan.export_stage.why) as step:
        export = store.get_or_make(
            "export",
            plan.export_stage.inputs,
            lambda work: make_export(plan, bake.path / DISK, str(bake.meta["disk_sha256"]), work, step),
            on_wait=step.wait,
        )
        step.reused(export.cached)

    files_made = exported(export)
    machines = boots(plan.image.formats.names, full=options.full_matrix)
    with console.stage("verify", f"boots {', '.join(boot.name for boot in machines)}") as step:
        subject = Subject(
            files=[File(kind=kind, path=export.path / str(facts["name"])) for kind, facts in files_made.items()],
            boots=machines,
            facts=release_facts(plan),
            memory=plan.image.machine.memory,
            cpus=plan.image.machine.cpus,
            build_key=str(bake.meta["build_key"]),
        )
        keep = console.log_dir / "verify" if console.log_dir else None
        verified = store.get_or_make(
            "verify",
            verify_inputs(plan, files_made, machines, tools, str(firmware.code)),
            lambda work: verify(subject, work, accelerator, step, keep=keep),
            on_wait=step.wait,
        )
        step.reused(verified.cached)

    with console.stage("release", str(options.dist)) as step:
        verdict = json.loads((verified.path / VERDICT).read_text())
        done = find_release(options.dist, plan.name, plan.export_stage.key)
        if done and done.manifest["verdict"]["files"] == verdict["files"] and not options.full_matrix:
            for kind in files_made:
                releasing.require_verdict(verdict, kind, done.file(kind))
            step.outcome = f"{done.version} is released already"
        else:
            stages = {"base": base, "bake": bake, "export": export, "verify": verified}
            done = make_release(
                plan,
                export=export.path,
                files=files_made,
                verdict=verdict,
                manifest=manifest(plan, stages, files, fetching.seconds, tools),
                dist=options.dist,
                today=date.today(),  # noqa: DTZ011 - the user's day
            )
            step.outcome = str(done.path)
    return done


def exported(export: Result) -> dict[FormatName, Mapping[str, object]]:
    """Return name, bytes and SHA-256 of each exported file."""
    files = export.meta["files"]
    assert isinstance(files, dict)  # noqa: S101 - written by the export stage
    # JSON sorts its keys; the order of formats is that of their names in the spec.
    return {kind: files[kind] for kind in get_args(FormatName) if kind in files}


def verify_inputs(
    plan: Plan,
    files: Mapping[FormatName, Mapping[str, object]],
    machines: Sequence[Boot],
    tools: Mapping[str, str],
    firmware: str,
) -> dict[str, object]:
    """Return what a verdict depends on: the bytes, the checks, and the machines."""
    checks = ["conftest.py", *DISK_TESTS, *test_files(release_facts(plan))]
    return {
        "edition": VERIFY_EDITION,
        "sha256": {kind: facts["sha256"] for kind, facts in files.items()},
        "facts": release_facts(plan),
        "machine": plan.image.machine.model_dump(),
        "machines": {boot.name: vars(PROFILES[boot.profile]) for boot in machines},
        "firmware": firmware,
        "files": digests(PROJECT, [Path("tests/image") / name for name in checks]),
        "tools": {"qemu-system-x86_64": tools["qemu-system-x86_64"]},
    }


def check_free_space(folder: Path) -> None:
    """Refuse to start on a disk that is too small.

    Raises:
        HostError: Less is free than a build needs.
    """
    free = shutil.disk_usage(folder).free
    if free < host.NEEDED_DISK:
        raise HostError(
            f"{folder} has {human_bytes(free)} free, and a build needs up to {human_bytes(host.NEEDED_DISK)}",
            hint="free some (`invoke clean`), or set VMIMAGE_CACHE to a folder on a larger disk",
        )


def planned(plan: Plan, store: Store, dist: Path) -> list[tuple[str, str, str]]:
    """Return (stage, state, what and why) for every stage, as `invoke plan` shows it."""
    rows = []
    for file in plan.files:
        cached = stored(file, store)
        where = "in the cache" if cached else f"from the first that serves it: {', '.join(map(str, file.sources))}"
        rows.append(("fetch", "cached" if cached else "fetch", f"{file.name} {file.version} {where}"))
    for stage in (plan.base_stage, plan.bake_stage, plan.export_stage):
        found = store.find(stage.stage, stage.inputs)
        rows.append((stage.stage, "cached" if found else "make", f"{stage.why} [{stage.key}]"))
    machines = ", ".join(boot.name for boot in boots(plan.image.formats.names, full=False))
    rows.append(("verify", "check", f"boots {machines}, unless they passed before"))
    done = find_release(dist, plan.name, plan.export_stage.key)
    rows.append(("release", "done" if done else "make", str(done.path if done else dist / plan.name)))
    return rows


def open_store(options: Options) -> Store:
    """Open the cache, and forget the oldest logs."""
    store = Store(options.cache)
    for old in sorted((store.root / "logs").iterdir())[: -KEPT_LOGS or None]:
        shutil.rmtree(old, ignore_errors=True)
    return store


def verify_file(path: Path, options: Options, store: Store, console: Console) -> Mapping[str, object]:
    """Verify a file by itself: by the manifest beside it if there is one, else by what the image says.

    Raises:
        InputError: There is no such file, or its name tells no format.
        VerifyError: It failed.
    """
    host.require(("qemu-system-x86_64", "qemu-img", "sfdisk", "mke2fs", "unshare"))
    host.find_uefi()
    if not path.is_file():
        raise InputError(f"there is no file {path}", hint="`invoke list` shows the released files")
    kind = kind_of(path)
    if not kind:
        raise InputError(f"{path.name} has no known format", hint=f"names end in {', '.join(get_args(FormatName))}")
    accelerator = host.find_accelerator(store.root / "accelerator.json", options.accelerator)
    store.sweep()
    beside = path.parent / releasing.MANIFEST
    known = json.loads(beside.read_text()) if beside.is_file() else {}
    recorded = {file["name"]: file["sha256"] for file in known.get("files", {}).values()}
    file = File(kind=kind, path=path, recorded_sha256=recorded.get(path.name, ""))
    machines = boots([kind], full=options.full_matrix)
    with (
        console.stage("verify", f"boots {', '.join(boot.name for boot in machines)}") as step,
        store.workspace("verify") as work,
    ):
        machine = known.get("machine", {"memory": "2 GiB", "cpus": 2})
        subject = Subject(
            files=[file],
            boots=machines,
            facts=facts_of(file, store),
            memory=machine["memory"],
            cpus=machine["cpus"],
            build_key=known.get("build_key", ""),
        )
        log_dir = console.log_dir or work
        verdict = verify(subject, work, accelerator, step, keep=log_dir / "verify")
        shutil.copytree(work, log_dir / "verify", dirs_exist_ok=True)
    return verdict


def facts_of(file: File, store: Store) -> Mapping[str, object]:
    """Read what the image in a file says of itself.

    Raises:
        VerifyError: The file is refused, or says nothing.
    """
    with store.workspace("facts") as work:
        require_recorded(file)
        opened = opened_disk(file, work)
        raw = work / "facts.raw"
        run(["qemu-img", "convert", "-f", opened.format, "-O", "raw", opened.path, raw], error=VerifyError)
        return image_facts(RawDisk(raw), work)
