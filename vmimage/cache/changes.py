"""Why a result cannot be reused: what differs between its inputs and those of the nearest earlier result. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vmimage.cache.result import AFTER

Leaves = dict[tuple[str, ...], object]
MOST = 4
"""So many differences are told one by one."""


def leaves(inputs: object, path: tuple[str, ...] = ()) -> Leaves:
    """Return every single value of some inputs by its path; the members of a list are paths of their own."""
    if isinstance(inputs, Mapping):
        found: Leaves = {}
        for key, value in inputs.items():
            found |= leaves(value, (*path, str(key)))
        return found
    if isinstance(inputs, (list, tuple)):
        return {(*path, str(value)): True for value in inputs}
    return {path: inputs}


def differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Return what changed, one text each; what it builds on (`after`) does not count."""
    before, now = leaves(old), leaves(new)
    paths = [path for path in {**before, **now} if before.get(path) != now.get(path) and path[0] != AFTER]
    told = {text: None for path in sorted(paths) if (text := _told(path, before, now))}
    return list(told)


def _told(path: tuple[str, ...], before: Leaves, now: Leaves) -> str:
    old, new = before.get(path), now.get(path)
    gone_or_new = "is new" if old is None else "is gone"
    match path:
        case ("files", name):
            text = f"{name} {'changed' if old and new else gone_or_new}"
        case ("pins", pin, "version") | ("tools", pin):
            text = f"{pin} {old} -> {new}" if old and new else f"{pin} {gone_or_new}"
        case ("pins", pin, "sha256"):
            same = before.get(("pins", pin, "version")) == now.get(("pins", pin, "version"))
            text = f"{pin} has another SHA-256" if same else ""
        case ("facts", "versions", _):
            text = ""  # told as a pin, where it is used
        case ("period",):
            text = f"fresh packages: {old} -> {new}"
        case (*parts, name) if old is True or new is True:
            text = f"{'.'.join(parts)}: {name} {gone_or_new}"
        case _:
            text = f"{'.'.join(path)}: {old} -> {new}"
    return text


def why_new(inputs: Mapping[str, object], earlier: Iterable[Mapping[str, object]]) -> str:
    """Return why none of the earlier results of a stage serves, in words for people.

    Args:
        earlier: Their inputs, the latest first.
    """
    comparable = [old for old in earlier if old.get("script") == inputs.get("script")]
    if not comparable:
        return "nothing like it was made before"
    found = min((differences(old, inputs) for old in comparable), key=len)
    if not found:
        return "what it builds on changed"
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return ", ".join(found[:MOST]) + more
