"""`invoke rebuild RELEASE`: makes a released image again, and says whether it came out the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from invoke.exceptions import Exit
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from vmimage import host, pipeline
from vmimage.cache.changes import differences
from vmimage.cache.store import ROOM, Store
from vmimage.commands.diff.report import DIFFERENT, LIMIT, tell
from vmimage.commands.diff.subject import Subject, find_subject
from vmimage.commands.session import session
from vmimage.disk.dpkg import NAME, VERSION
from vmimage.inputs.kept import kept_packages
from vmimage.plan import Plan
from vmimage.spec.pins import Sha256
from vmimage.stages.base import read_debs
from vmimage.stages.export import ExportStage
from vmimage.stages.fetch import fetch_stage
from vmimage.stages.release.manifest import MANIFEST, Facts, Manifest, Text, first_reason
from vmimage.stages.stage import BuildContext, StoredStage
from vmimage.stages.verify.subject import File
from vmimage.util.console import Console
from vmimage.util.errors import InputError
from vmimage.util.files import fullness_told, place
from vmimage.util.settings import Options

REMADE = ("base", "bake", "export")
COMMIT = re.compile(r"[0-9a-f]{40,64}")
MOST_LEVELS, MOST_VALUES = 20, 100_000
"""Of the inputs in a manifest: theirs are some six levels, and a few hundred values."""
MOST_TOLD, MOST_LINE = 50, 300
"""Differences that an error tells one by one, and characters of each."""


Line = Annotated[str, StringConstraints(max_length=4000)]
"""Of sources.list, whose options may name many files."""


class Made(Facts):
    """Inputs of a stage; those that are the host's and not the project's."""

    tools: dict[Text, Text] = Field(default_factory=dict)
    period: Text = ""
    mirrors: list[Line] = Field(default_factory=list)


class Deb(Facts):
    """A package file that an image was made from."""

    package: Text
    sha256: Sha256


DEBS_LIST = TypeAdapter(list[Deb])


class Inputs(Facts):
    """Inputs of the stages that are made again."""

    base: Made
    bake: Made
    export: Made


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a manifest says of the stages that are made again.

    Attributes:
        keys: Stage -> key of its result.
        raw: Stage -> its inputs, as they were written.
        commit: Of the sources; nothing where it is not known.
        packages: Debian package -> version.
        debs: Debian package -> SHA-256 of its .deb.
    """

    keys: Mapping[str, str]
    inputs: Inputs
    raw: Mapping[str, Mapping[str, object]]
    commit: str
    packages: Mapping[str, str]
    debs: Mapping[str, str]

    def plan(self, plan: Plan) -> Plan:
        """Return a plan as it was on the release's host, at that time."""
        base = self.inputs.base
        tools = {**plan.tools, **base.tools, **self.inputs.export.tools}
        return replace(plan, period=base.period, debian_mirrors=tuple(base.mirrors), tools=tools)


def rebuild(text: str, chosen: Options, *, json_lines: bool) -> None:
    """Make a release again from its manifest, in an empty place, and compare the files.

    Raises:
        Exit: What came out differs: exit code 7.
    """
    with session(chosen, json_lines=json_lines, log="rebuild") as (console, store):
        store.sweep()
        subject = find_subject(str(Path(text).parent) if Path(text).name == MANIFEST else text, chosen.dist, console)
        if not subject.manifest:
            raise InputError(f"{text} is no release", hint=f"name its folder or {MANIFEST}, or IMAGE or IMAGE/VERSION")
        known = recorded(subject.manifest)
        host.require(host.BUILD_TOOLS)
        plan = pipeline.plan_image(subject.manifest.image, chosen)
        for warning in require_same_sources(plan, pipeline.build_context(chosen, store), known):
            console.warn(warning)
        plan = with_packages(plan, known, store)
        if plan.package_source:
            console.say(
                f"Debian's packages are those of the {'bundle' if chosen.bundle else 'cache'}, by their SHA-256"
            )
        with store.workspace("rebuild") as work, fullness_told(store.root, ROOM):
            files = remake(plan, known, chosen, store, work, console)
            digests = {kind: str(file["sha256"]) for kind, file in files.items()}
            wanted = {kind: file.sha256 for kind, file in subject.manifest.files.items()}
            same = all(digests.get(kind) == digest for kind, digest in wanted.items())
            for line in digest_lines(wanted, digests):
                console.say(line)
            if not same:
                made = Subject(
                    name=f"{subject.manifest.image}, made again",
                    file=File(kind=subject.file.kind, path=Path(str(files[subject.file.kind]["path"]))),
                    sizes={kind: int(str(file["bytes"])) for kind, file in files.items()},
                    # Equal keys: it was made with the same pins.
                    manifest=subject.manifest,
                )
                tell([subject, made], store, console, limit=LIMIT)
        console.event("result", same=same, files=digests, recorded=wanted)
        console.say(f"\n{'identical: every file is the released one, byte for byte' if same else 'not identical'}")
        if not same:
            raise Exit(code=DIFFERENT)


def recorded(manifest: Manifest) -> Recorded:
    """Return what a manifest says of the stages.

    Raises:
        InputError: It says too little to make the image again.
    """
    told: Mapping[str, Any] = manifest.model_extra or {}
    keys = {name: stage.key for name, stage in manifest.stages.items() if name in REMADE and stage.key}
    try:
        _require_bounded(told.get("inputs"))
        inputs = Inputs.model_validate(told.get("inputs"))
        debs = DEBS_LIST.validate_python(told.get("debs", []))
        if set(keys) != set(REMADE) or not inputs.base.period:
            raise ValueError("keys of its stages, or the time of its packages")
        for name, version in manifest.packages.items():
            if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
                raise ValueError(f"{name!r:.80} {version!r:.80} is no package")
    except ValueError as error:
        why = first_reason(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{MANIFEST} does not tell what the release was made from: {why}") from None
    git = told.get("git")
    commit = git.get("commit") if isinstance(git, dict) else ""
    known = COMMIT.fullmatch(commit) if isinstance(commit, str) else None
    return Recorded(
        keys=keys,
        inputs=inputs,
        raw=told["inputs"],
        commit=known[0] if known else "",
        packages=manifest.packages,
        debs={deb.package: deb.sha256 for deb in debs},
    )


def _require_bounded(inputs: object) -> None:
    """Check that inputs are not larger or deeper than any, before they are compared.

    Raises:
        ValueError: They are.
    """
    waiting, values = [(inputs, 1)], 0
    while waiting:
        each, level = waiting.pop()
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        values += len(inner)
        if level > MOST_LEVELS or values > MOST_VALUES:
            raise ValueError(f"inputs: more than {MOST_LEVELS} levels or {MOST_VALUES} values")
        waiting += [(one, level + 1) for one in inner if isinstance(one, dict | list)]


def other_debs(known: Mapping[str, str], made: Mapping[str, str]) -> list[str]:
    """Return the packages whose .deb has other bytes, though it has the same version."""
    return sorted(name for name, digest in made.items() if known.get(name, digest) != digest)


def require_same_sources(plan: Plan, context: BuildContext, known: Recorded) -> list[str]:
    """Check that this checkout has all that the release was made from; returns what else differs, for people.

    The stages of this checkout are planned with the release's time, mirrors and tools: the same keys then say that all
    other inputs are the same, to the last file.

    Raises:
        InputError: Something of the project is another.
    """
    then = known.plan(plan)
    stages = _stages(then, context)
    if {name: stages[name].key for name in REMADE} != known.keys:
        told = [f"{n}: {text}" for n in REMADE for text in differences(known.raw[n], stages[n].inputs)]
        more = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
        some = [text if len(text) <= MOST_LINE else f"{text[:MOST_LINE]} …" for text in told[:MOST_TOLD]]
        listed = "\n    ".join([*some, *more] or ["a provision step, or a file that one lays"])
        where = f"its sources are those of `git checkout {known.commit}`" if known.commit else "check out its sources"
        raise InputError(f"this checkout would make another image:\n    {listed}", hint=where)
    warnings = [
        f"{tool} is {plan.tools[tool]} here, and was {was}"
        for tool, was in then.tools.items()
        if plan.tools.get(tool, was) != was
    ]
    if plan.debian_mirrors != then.debian_mirrors:
        warnings.append("Debian's packages come from another mirror than they did")
    return warnings


def with_packages(plan: Plan, known: Recorded, store: Store) -> Plan:
    """Return a plan that asks for the packages of a release: those of a bundle, of the cache, or else of a mirror."""
    source = plan.package_source or kept_packages(store, known.keys["base"], plan.debian_mirrors)
    return replace(plan, period=known.inputs.base.period, package_versions=known.packages, package_source=source)


def remake(
    plan: Plan, known: Recorded, chosen: Options, store: Store, work: Path, console: Console
) -> dict[str, Mapping[str, object]]:
    """Make the files of an image in a cache of its own; returns format -> name, path, bytes and SHA-256.

    Args:
        work: A folder for that cache, which has to stay as long as the files are needed.
    """
    shared = pipeline.build_context(chosen, store, console)
    fetch = fetch_stage(plan, shared)
    with console.stage(fetch.name, fetch.why) as step:
        fetch.obtain(step, fresh=False, check=True)
    own = Store(work / "cache")
    for file in plan.files:
        place(store.file(file.sha256), own.file(file.sha256))
    stages = _stages(plan, replace(shared, store=own, made=set(), seconds={}))
    for stage in stages.values():
        with console.stage(stage.name, stage.why) as step:
            stage.obtain(step, fresh=False, check=False)
    listed = read_debs(stages["base"].result.path)
    others = other_debs(known.debs, {str(deb["package"]): str(deb["sha256"]) for deb in listed})
    if others:
        console.warn(f"the mirror's files of these packages are others, under the same versions: {', '.join(others)}")
    export = stages["export"]
    assert isinstance(export, ExportStage)  # noqa: S101 - it is the stage of this name
    folder = export.result.path
    return {kind: {**facts, "path": folder / str(facts["name"])} for kind, facts in export.exported.items()}


def digest_lines(wanted: Mapping[str, str], made: Mapping[str, str]) -> list[str]:
    """Return what came of each file, for people."""
    lines = []
    for kind, digest in wanted.items():
        now = made.get(kind, "")
        lines.append(f"{kind}: {'the same' if now == digest else 'differs'}, {digest}")
        lines += [f"{' ' * len(kind)}  made again: {now or 'not'}"] * (now != digest)
    return lines


def _stages(plan: Plan, context: BuildContext) -> dict[str, StoredStage]:
    """Return the stages that are made again, by name and in order."""
    stages = pipeline.stages_of(plan, context)
    return {each.name: each for each in stages if isinstance(each, StoredStage) and each.name in REMADE}
