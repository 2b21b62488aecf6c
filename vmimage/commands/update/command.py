"""`invoke update`: newer versions of pins, as upstream publishes them, into images.yaml."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

from invoke.exceptions import Exit

from vmimage.cache.store import Store
from vmimage.commands.session import session
from vmimage.commands.update.ask import Upstream, instead_of
from vmimage.commands.update.digests import Digests
from vmimage.commands.update.rewrite import Change, changed, left_behind, rewritten, write
from vmimage.commands.update.search import Found, Search, State
from vmimage.plan import pinned_file
from vmimage.spec.load import MOST_BYTES, load_spec
from vmimage.spec.model import Spec, near_miss
from vmimage.stages.fetch import fetch, file_of
from vmimage.util.console import Console, Step
from vmimage.util.errors import FetchError, InputError
from vmimage.util.files import read_regular, sha256_file
from vmimage.util.location import UnavailableError
from vmimage.util.settings import Options, fetch_bounds

NEWER = 7
"""Exit code of --check: there are newer versions."""


def update_pins(pins: Sequence[str], chosen: Options, *, check: bool, json: bool) -> None:
    """Look up pins, and write those that are newer into images.yaml.

    Args:
        pins: PIN or PIN=VERSION; all that have an upstream when none is given.
        check: Write nothing; the exit code says whether there are newer ones.
    """
    with session(chosen, json_lines=json, log="update") as (console, store):
        store.sweep()
        spec, old = _read(chosen.spec)
        names, told = _named(pins, spec)
        instead = instead_of(chosen.upstreams)
        with console.stage("update", ", ".join(names)) as step, store.workspace("update") as work:
            upstream = Upstream(instead, work, fetch_bounds())
            complete = _published_only if check else partial(_unpacked, spec, chosen, store, step, work)
            found = Search(spec, upstream, told, complete).look_up(names, step.now)
            step.outcome = _summary(found)
        for each in found:
            _tell(each, console)
        newer = [each for each in found if each.state == "newer"]
        diff = _written(newer, spec, old, chosen.spec, console) if newer and not check else ""
        console.event("result", newer=[each.pin for each in newer], written=bool(diff), diff=diff)
        if failed := [each for each in found if each.state == "failed"]:
            raise FetchError(
                "no newer version could be found of:\n" + "\n".join(f"    {each.pin}: {each.why}" for each in failed),
                hint="the others were looked up all the same; docs/building.md (newer pins) says how to use a mirror",
            )
        if check and newer:
            raise Exit(code=NEWER)


def _read(path: Path) -> tuple[Spec, bytes]:
    spec = load_spec(path)
    return spec, read_regular(path, MOST_BYTES, follow=True)


def _named(pins: Sequence[str], spec: Spec) -> tuple[list[str], dict[str, str]]:
    """Return the pins to look up, and the versions that were named: of the pin that leads where one follows.

    Raises:
        InputError: There is no such pin, or none with an upstream, or two versions are named for one.
    """
    names, told = list[str](), dict[str, str]()
    for text in pins:
        name, sign, version = text.partition("=")
        if name not in spec.pins:
            raise InputError(
                f"images.yaml has no pin {name!r}{near_miss(name, list(spec.pins))}",
                hint=f"the pins are: {', '.join(spec.pins)}",
            )
        names.append(name)
        upstream = spec.pins[name].upstream
        leader = upstream.follows if upstream and upstream.follows else name
        if sign and told.setdefault(leader, version) != version:
            raise InputError(f"{text}: another version of {leader} is named, too", hint="name one version")
    names = names or [name for name, pin in spec.pins.items() if pin.upstream]
    if not names:
        raise InputError("no pin of images.yaml has `upstream:`", hint="docs/building.md (newer pins) shows one")
    return list(dict.fromkeys(names)), told


def _published_only(_name: str, _version: str, published: Digests) -> Digests:
    return published


def _unpacked(
    spec: Spec,
    chosen: Options,
    store: Store,
    step: Step,
    work: Path,
    name: str,
    version: str,
    published: Digests,
) -> Digests:
    """Compute the digests of files in archives, from archives that have the published digest.

    Raises:
        UnavailableError: An archive could not be had.
    """
    pin, file = spec.pins[name], dict(published.file)
    for (number, arch), digest in published.unpacked.items():
        archive = Change(version=version, sha256={}, archives={(number, arch): digest})
        only_archive = changed(pin.model_copy(update={"sha256": {}}), archive)
        pinned = pinned_file(name, only_archive, arch, chosen.mirrors, chosen.spec.parent)
        try:
            got = fetch([pinned], store, step)[name]
            file[arch] = sha256_file(file_of(pinned, got, work))
        except FetchError as error:
            raise UnavailableError(error.message) from error
    return replace(published, file=file)


def _written(newer: Sequence[Found], spec: Spec, old: bytes, path: Path, console: Console) -> str:
    """Write the new images.yaml; returns the difference, which is also printed."""
    changes = {
        each.pin: Change(version=each.version, sha256=each.digests.file, archives=each.digests.archives)
        for each in newer
    }
    before = old.decode("utf-8")
    try:
        after = rewritten(before, changes)
    except ValueError as error:
        raise InputError(f"{path} is left as it is: {error}", hint="update the pins by hand") from error
    write(path, old, after, spec, changes)
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), path.name, path.name, lineterm="")
    diff = "\n".join(lines)
    console.say(diff)
    left_behind(spec, changes, console.warn)
    return diff


def _summary(found: Sequence[Found]) -> str:
    counts = {state: sum(each.state == state for each in found) for state in get_args(State)}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _tell(found: Found, console: Console) -> None:
    console.event(
        "pin",
        name=found.pin,
        state=found.state,
        pinned=found.pinned,
        version=found.version,
        why=found.why,
        sha256=found.digests.shown,
    )
    version = found.version if found.state in ("newer", "held") else ""
    told = f"{found.pin:<20} {found.state:<8} {found.pinned}" + (f" -> {version}" if version else "")
    console.say(told + (f"  ({found.why})" if found.why and found.state != "failed" else ""))
