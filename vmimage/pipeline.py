"""The pipeline: the stages of an image in order, and building it by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from typing import TypeVar

from vmimage import PROJECT, host
from vmimage.cache.store import Store
from vmimage.plan import Plan, make_plan
from vmimage.spec.load import load_spec
from vmimage.spec.model import Base
from vmimage.spec.snapshot import snapshot_lines
from vmimage.stages.bake.stage import bake_stage
from vmimage.stages.base import base_stage
from vmimage.stages.bundled import planned_from_bundle
from vmimage.stages.export import export_stage
from vmimage.stages.fetch import fetch_stage
from vmimage.stages.release import dist as releasing
from vmimage.stages.release.dist import Release
from vmimage.stages.release.gate.gate import TRACKER, Gate
from vmimage.stages.release.mark import require_ours
from vmimage.stages.release.stage import ReleaseStage, release_stage
from vmimage.stages.stage import BuildContext, Stage
from vmimage.stages.verify.stage import verify_stage
from vmimage.util.console import Console
from vmimage.util.errors import InputError
from vmimage.util.settings import Options, fetch_bounds
from vmimage.vm.accelerator import find_accelerator, known_accelerator

Kind = TypeVar("Kind", bound=Stage)
PLAN_TOOLS = ("packer", "qemu-img", "mmdebstrap", "mke2fs")


def stages_of(plan: Plan, context: BuildContext, *, full_matrix: bool = False) -> tuple[Stage, ...]:
    """Return the stages of an image, in the order in which they run.

    Args:
        full_matrix: Boot the exported files in every machine that their formats are for.
    """
    base = base_stage(plan, context)
    bake = bake_stage(plan, base)
    export = export_stage(plan, bake)
    verify = verify_stage(plan, export, full_matrix=full_matrix)
    return fetch_stage(plan, context), base, bake, export, verify, release_stage(plan, verify)


def the_stage(stages: Sequence[Stage], kind: type[Kind]) -> Kind:
    """Return the only stage of a kind."""
    (found,) = (stage for stage in stages if isinstance(stage, kind))
    return found


@dataclass(frozen=True, kw_only=True)
class Start:
    """From where on all is done again, whether it was done before or not.

    Attributes:
        stage: Index of a stage; behind the last when nothing is.
        step: Index of a provision step, when it is one.
    """

    stage: int
    step: int | None = None


def find_start(plan: Plan, stages: Sequence[str], text: str) -> Start:
    """Read `--from`: a stage, or a provision step with or without its suffix.

    Raises:
        InputError: There is no such stage or step.
    """
    if not text:
        return Start(stage=len(stages))
    if text in stages:
        return Start(stage=stages.index(text), step=0 if text == "bake" else None)
    steps = [script.removesuffix(".sh") for script in plan.step_scripts]
    if text.removesuffix(".sh") in steps:
        return Start(stage=stages.index("bake"), step=steps.index(text.removesuffix(".sh")))
    raise InputError(f"--from {text}: no stage or step of {plan.name}", hint=f"one of {', '.join((*stages, *steps))}")


def plan_image(name: str | None, options: Options) -> Plan:
    """Decide what a build would be about; starts nothing but questions to tools."""
    spec = load_spec(options.spec)
    name, image = spec.image(name)
    host.remember(options.cache)
    lines = debian_sources(spec.bases[image.base], options)
    plan = make_plan(
        spec,
        name,
        project=PROJECT,
        mirrors=options.mirrors,
        debian_mirrors=lines,
        tools={**host.require(PLAN_TOOLS), **{name: version(name) for name in ("deflate", "zstandard")}},
        today=date.today(),  # noqa: DTZ011 - the user's day
    )
    return planned_from_bundle(plan, options.bundle, lines) if options.bundle else plan


def debian_sources(base: Base, options: Options) -> list[str]:
    """Return the lines for sources.list that a base is made from; none for mmdebstrap's own default.

    Raises:
        InputError: What the user chose is no mirror, or no archive of snapshots.
    """
    if base.snapshot:
        return snapshot_lines(base.snapshot, base.suite, options.snapshots)
    return host.debian_mirrors(base.suite, options.debian_mirror)


def build_context(options: Options, store: Store, console: Console | None = None) -> BuildContext:
    """Return what a build with these options works with.

    Args:
        console: Of a build; without one, nothing is built.
    """
    log_dir = console.log_dir if console else None
    keep = store.root / "kept" / log_dir.name if options.keep_failed and log_dir else None
    if keep:
        store.hold("kept", keep.name)
    return BuildContext(
        store=store,
        dist=options.dist,
        today=date.today(),  # noqa: DTZ011 - the user's day
        accelerator=lambda: find_accelerator(store.root / "accelerator.json", options.accelerator),
        evidence=log_dir / "verify" if log_dir else None,
        keep=keep,
    )


def gate_of(plan: Plan, context: BuildContext, data: str, console: Console) -> Gate:
    """Return what is asked before a release; `data` of the security tracker are Debian's own when not given."""
    return Gate(
        rules=plan.vulnerabilities,
        suite=plan.base.suite,
        today=context.today,
        bounds=fetch_bounds(),
        warn=console.warn,
        data=data or TRACKER,
    )


def build_image(name: str | None, options: Options, store: Store, console: Console) -> Release:
    """Build, verify and release an image; stages that are done already are not repeated.

    Raises:
        VmimageError: A stage failed; what earlier stages made stays.
    """
    plan = plan_image(name, options)
    context = build_context(options, store, console)
    if options.gate:
        context.gate = gate_of(plan, context, options.security_data, console).check
    stages = stages_of(plan, context, full_matrix=options.full_matrix)
    start = find_start(plan, [stage.name for stage in stages], options.start)
    context.start_step = start.step
    _prepare(plan, options, store, console)
    for index, (stage, following) in enumerate(pairwise((*stages, None))):
        assert stage  # noqa: S101 - only the one behind the last is none
        with console.stage(stage.name, stage.why) as step:
            # What something new is made from is compared byte by byte; else size and time of change suffice.
            read = following is not None and (index + 1 >= start.stage or not following.is_there())
            stage.obtain(step, fresh=index >= start.stage, check=options.recheck or read)
        context.seconds[stage.name] = step.seconds
    return the_stage(stages, ReleaseStage).released


def _prepare(plan: Plan, options: Options, store: Store, console: Console) -> None:
    """Look whether this host can build and where releases go, and remove what killed runs left."""
    if options.accelerator:
        known_accelerator(options.accelerator)
    host.require(host.BUILD_TOOLS)
    host.find_uefi()
    console.say(f"{plan.name}: {plan.image.summary} (cache: {store.root})")
    require_ours(options.dist)
    releasing.sweep(options.dist)
    releasing.tell_misfits(options.dist, console)
    removed = store.sweep()
    if removed:
        console.say(f"removed what a killed run left: {', '.join(removed)}")


def planned(plan: Plan, options: Options, store: Store) -> Iterator[tuple[str, str, str]]:
    """Yield (stage, state, what and why) for every stage, as `invoke plan` shows it."""
    for stage in stages_of(plan, build_context(options, store), full_matrix=options.full_matrix):
        yield from stage.planned()
