"""A plan whose inputs come from a bundle, and from nowhere else: nothing of it is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vmimage.inputs.bundle import Bundle, BundledBase, BundledPackages, opened_bundle
from vmimage.inputs.mirror import Repository, options_of, parse_line, same_uri
from vmimage.plan import Plan, Source
from vmimage.util.errors import InputError

MOST_TOLD = 20
"""Packages that an error names one by one."""
OF_TRUST = ("signed-by", "trusted")
"""Options of a line of sources.list that say whose signature counts, or that none is needed."""


def planned_from_bundle(plan: Plan, path: Path, lines: Sequence[str]) -> Plan:
    """Return a plan whose pinned files and packages come from a bundle.

    The base then is that of the host where the bundle was made, at that time, to the key.

    Args:
        lines: The user's lines for sources.list. None of them is asked; they say which keys count beside Debian's.

    Raises:
        InputError: The bundle has not the packages that this checkout asks for.
    """
    with opened_bundle(path) as bundle:
        base = _base_for(plan, bundle)
    for repository in base.part.repositories:
        _require_trust(repository, base, lines, path)
    return replace(
        plan,
        # What is missing is named when it is fetched, unless the cache has it.
        files=tuple(replace(file, sources=(Source(kind="bundle", where=str(path)),)) for file in plan.files),
        period=base.period,
        debian_mirrors=base.mirrors,
        package_source=BundledPackages(bundle=path, part=base.part, lines=tuple(lines)),
    )


def _base_for(plan: Plan, bundle: Bundle) -> BundledBase:
    """Return the base of a bundle that a plan can be made from, the nearest one."""
    hint = f"make a bundle for it, from this checkout: `invoke bundle-inputs {plan.name}`"
    there = [base for base in bundle.index.bases if (base.suite, base.arch) == (plan.base.suite, plan.base.arch)]
    if not there:
        known = ", ".join(f"{base.suite} {base.arch}" for base in bundle.index.bases) or "none"
        raise InputError(
            f"{bundle.path} has no packages of {plan.base.suite} {plan.base.arch}, but of: {known}", hint=hint
        )
    if plan.base.snapshot:
        then = [base for base in there if base.period == plan.period]
    else:
        then = [base for base in there if not base.period.startswith("snapshot ")]
    if not then:
        periods = ", ".join(base.period for base in there)
        wanted = plan.period if plan.base.snapshot else "packages that are not frozen"
        raise InputError(f"{bundle.path} has packages of {periods}; images.yaml asks for {wanted}", hint=hint)
    # Another order or more packages than asked for do no harm; the nearest is the one with the fewest too many.
    nearest = min(then, key=lambda base: (len({*plan.packages} - {*base.packages}), len(base.packages)))
    missing = sorted({*plan.packages} - {*nearest.packages})
    if missing:
        more = [f"and {len(missing) - MOST_TOLD} more"] if len(missing) > MOST_TOLD else []
        told = ", ".join([*missing[:MOST_TOLD], *more])
        raise InputError(f"{bundle.path} was made without packages that {plan.name} asks for: {told}", hint=hint)
    return nearest


def _require_trust(repository: Repository, base: BundledBase, lines: Sequence[str], path: Path) -> None:
    """Refuse packages that Debian did not sign, unless the user's own lines say who may.

    apt would refuse them as well, in other words.
    """
    if _trust(options_of(repository, lines)):
        return
    for line in base.mirrors:
        options, uri, suite, _ = parse_line(line)
        if _trust(options) and (same_uri(uri), suite) == (same_uri(repository.uri), repository.suite):
            raise InputError(
                f"{path} has packages of `{line}`, and only you can say that its options count",
                hint="give the same line with --deb-mirror: it is not asked, but its options count",
            )


def _trust(options: str) -> bool:
    return any(option.partition("=")[0] in OF_TRUST for option in options.split())
