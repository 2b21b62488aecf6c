"""The pipeline: `build_image` is the checklist of the stages, in order."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from vmimage import PROJECT, host
from vmimage.accelerator import find_accelerator, known_accelerator
from vmimage.changes import why_new
from vmimage.console import Console
from vmimage.errors import InputError
from vmimage.files import fullness_told
from vmimage.layers import Layers
from vmimage.matrix import boots
from vmimage.payload import release_facts
from vmimage.plan import Plan, StagePlan, make_plan
from vmimage.provenance import manifest
from vmimage.settings import Options
from vmimage.spec import FormatName, load_spec
from vmimage.stages import release as releasing
from vmimage.stages.bake import DISK, make_bake
from vmimage.stages.base import make_base
from vmimage.stages.export import make_export
from vmimage.stages.fetch import fetch, stored
from vmimage.stages.release import Release, find_release, make_release
from vmimage.stages.verify import VERDICT, File, Subject, verify
from vmimage.store import Result, Store
from vmimage.verification import verify_inputs

BUILD_TOOLS = ("packer", "qemu-system-x86_64", "qemu-img", "mmdebstrap", "sfdisk", "mkfs.vfat", "mke2fs", "unshare")
PLAN_TOOLS = ("packer", "qemu-img", "mmdebstrap", "mke2fs")
STAGES = ("fetch", "base", "bake", "export", "verify", "release")
KEPT_LOGS = 20


@dataclass(frozen=True, kw_only=True)
class Start:
    """From where on all is done again, whether it was done before or not.

    Attributes:
        stage: Index in STAGES; behind the last when nothing is.
        step: Index of a provision step, when it is one.
    """

    stage: int = len(STAGES)
    step: int | None = None

    def at(self, stage: str) -> bool:
        """Tell whether a stage is done again."""
        return STAGES.index(stage) >= self.stage


def find_start(plan: Plan, text: str) -> Start:
    """Read `--from`: a stage, or a provision step with or without its suffix.

    Raises:
        InputError: There is no such stage or step.
    """
    if not text:
        return Start()
    if text in STAGES:
        return Start(stage=STAGES.index(text), step=0 if text == "bake" else None)
    names = [step.name for step in plan.steps]
    if text.removesuffix(".sh") in names:
        return Start(stage=STAGES.index("bake"), step=names.index(text.removesuffix(".sh")))
    raise InputError(f"--from {text}: no stage or step of {plan.name}", hint=f"one of {', '.join((*STAGES, *names))}")


def plan_image(name: str | None, options: Options) -> Plan:
    """Decide what a build would do; starts nothing but questions to tools."""
    spec = load_spec(options.spec)
    name, image = spec.image(name)
    host.remember(options.cache)
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
    start = find_start(plan, options.start)
    if options.accelerator:
        known_accelerator(options.accelerator)
    tools = host.require(BUILD_TOOLS)
    firmware = host.find_uefi()
    console.say(f"{plan.name}: {plan.image.summary} (cache: {store.root})")
    releasing.sweep(options.dist)
    removed = store.sweep()
    if removed:
        console.say(f"removed what a killed run left: {', '.join(removed)}")
    keep = store.root / "kept" / console.log_dir.name if options.keep_failed and console.log_dir else None
    if keep:
        store.hold("kept", keep.name)

    with console.stage("fetch", f"{len(plan.files)} pinned files") as fetching:
        files = fetch(plan.files, store, fetching, fresh=start.at("fetch"))

    # What a stage makes something new from is compared byte by byte before; else size and time of change suffice.
    there = _there(plan, store)
    check_base = options.recheck or start.at("bake") or not there["bake"]
    check_bake = options.recheck or start.at("export") or not there["export"]

    with console.stage("base", plan.base_stage.why) as step:

        def base_made(work: Path) -> Mapping[str, object]:
            host.require_user_namespaces()
            return make_base(plan, work, step)

        base = store.get_or_make(
            "base", plan.base_stage.inputs, base_made, step, fresh=start.at("base"), check=check_base
        )

    with console.stage("bake", plan.bake_stage.why) as step:

        def baked(work: Path) -> Mapping[str, object]:
            accelerator = find_accelerator(store.root / "accelerator.json", options.accelerator)
            with contextlib.closing(Layers(plan, base, store, step, start=start.step)) as layers:
                return make_bake(plan, base.path, files, layers, work, accelerator, step, keep=keep)

        bake = store.get_or_make(
            "bake", plan.bake_stage.inputs, baked, step, below=base, fresh=start.at("bake"), check=check_bake
        )

    with console.stage("export", plan.export_stage.why) as step:
        export = store.get_or_make(
            "export",
            plan.export_stage.inputs,
            lambda work: make_export(plan, bake.path / DISK, work, step),
            step,
            below=bake,
            fresh=start.at("export"),
            check=options.recheck,
        )

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
        evidence = console.log_dir / "verify" if console.log_dir else None

        def verdict_made(work: Path) -> Mapping[str, object]:
            accelerator = find_accelerator(store.root / "accelerator.json", options.accelerator)
            return verify(subject, work, accelerator, step, evidence=evidence, keep=keep)

        verified = store.get_or_make(
            "verify",
            verify_inputs(plan, files_made, machines, tools, firmware),
            verdict_made,
            step,
            fresh=start.at("verify"),
            check=options.recheck,
        )

    # One at a time: another build of the same image may release the same version.
    with (
        console.stage("release", str(options.dist)) as step,
        fullness_told(options.dist, "make room there, or set VMIMAGE_DIST to a folder on a larger disk"),
        releasing.publishing(options.dist / plan.name, on_wait=step.wait),
    ):
        verdict = json.loads((verified.path / VERDICT).read_text())
        done = find_release(options.dist, plan.name, plan.export_stage.key)
        if done and releasing.is_of(done, verdict, check=options.recheck) and not start.at("release"):
            # A build that was killed, or one of other inputs, may have left it elsewhere.
            releasing.point_latest(done.path.parent, done.version)
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


def _there(plan: Plan, store: Store) -> dict[str, Result | None]:
    """Return the results of base, bake and export that a build would use; each is made from the one before."""
    base = store.find("base", plan.base_stage.inputs)
    bake = store.find("bake", plan.bake_stage.inputs, below=base) if base else None
    export = store.find("export", plan.export_stage.inputs, below=bake) if bake else None
    return {"base": base, "bake": bake, "export": export}


def exported(export: Result) -> dict[FormatName, Mapping[str, object]]:
    """Return name, bytes and SHA-256 of each exported file."""
    files = export.meta["files"]
    assert isinstance(files, dict)  # noqa: S101 - written by the export stage
    # JSON sorts its keys; the order of formats is that of their names in the spec.
    return {kind: files[kind] for kind in get_args(FormatName) if kind in files}


def planned(plan: Plan, options: Options, store: Store) -> list[tuple[str, str, str]]:
    """Return (stage, state, what and why) for every stage, as `invoke plan` shows it."""
    rows = []
    for file in plan.files:
        cached = stored(file, store)
        where = "in the cache" if cached else f"from the first that serves it: {', '.join(map(str, file.sources))}"
        rows.append(("fetch", "cached" if cached else "fetch", f"{file.name} {file.version} {where}"))
    there = _there(plan, store)
    rows.append(_planned(plan.base_stage, plan.base_stage.why, there["base"], store))
    below = there["base"]
    for step in plan.steps:
        below = store.find(step.layer.stage, step.layer.inputs, below=below) if below else None
        stage, state, why = _planned(step.layer, step.name, below, store)
        # A layer that is not there is only made for a bake that is not there.
        rows.append((stage, "unused" if there["bake"] and state == "make" else state, why))
    rows.append(_planned(plan.bake_stage, "seal", there["bake"], store))
    rows.append(_planned(plan.export_stage, plan.export_stage.why, there["export"], store))
    machines = boots(plan.image.formats.names, full=False)
    names = ", ".join(boot.name for boot in machines)
    export = there["export"]
    if export:
        tools = host.require(("qemu-system-x86_64",))
        inputs = verify_inputs(plan, exported(export), machines, tools, host.find_uefi())
        verdict = store.find("verify", inputs)
        rows.append(_planned(StagePlan(stage="verify", inputs=inputs, why=""), f"boots {names}", verdict, store))
    else:
        rows.append(("verify", "make", f"boots {names}; unless the same bytes passed before"))
    done = find_release(options.dist, plan.name, plan.export_stage.key)
    rows.append(("release", "done" if done else "make", str(done.path if done else options.dist / plan.name)))
    return rows


def _planned(stage: StagePlan, what: str, found: Result | None, store: Store) -> tuple[str, str, str]:
    if found:
        return stage.stage, "cached", f"{what} [{stage.key}]"
    return stage.stage, "make", f"{what} [{stage.key}]: {why_new(stage.inputs, store.earlier(stage.stage))}"


def open_store(options: Options) -> Store:
    """Open the cache, and forget the oldest logs."""
    store = Store(options.cache)
    for old in sorted((store.root / "logs").iterdir())[: -KEPT_LOGS or None]:
        store.remove("logs", old.name)
    return store
