"""Patches of every kind that kubectl and helm send."""

from __future__ import annotations

import json
from typing import Any

from tests.k3s_stand_in.program.objects import Object, missing


def merged(old: Any, new: Any, *, by_name: bool = False) -> Any:
    """Lay a merge patch over a value (RFC 7396); lists of named things by their names if asked so."""
    if isinstance(old, dict) and isinstance(new, dict):
        result = dict(old)
        for key, value in new.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merged(old.get(key), value, by_name=by_name)
        return result
    if by_name and isinstance(old, list) and isinstance(new, list) and new and all(map(_named, [*old, *new])):
        kept = {each["name"]: each for each in old}
        for each in new:
            kept[each["name"]] = merged(kept.get(each["name"]), each, by_name=True)
        return list(kept.values())
    if isinstance(new, dict):
        return merged({}, new, by_name=by_name)
    return new


def _named(value: object) -> bool:
    return isinstance(value, dict) and "name" in value


def pruned(live: Any, before: Any, wanted: Any) -> Any:
    """Remove from an object what its applier set before and does not want any more."""
    if not (isinstance(live, dict) and isinstance(before, dict) and isinstance(wanted, dict)):
        return live
    kept = {key: value for key, value in live.items() if key not in before or key in wanted}
    return {key: pruned(value, before.get(key), wanted.get(key)) for key, value in kept.items()}


def json_patched(old: Object, patch: list[Object]) -> Object:
    """Apply a JSON patch: add, replace and remove."""
    new: Any = json.loads(json.dumps(old))
    for step in patch:
        *path, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
        at = new
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at[part]
        if isinstance(at, list):
            if step["op"] == "add":
                at.insert(len(at) if last == "-" else int(last), step["value"])
            elif step["op"] == "remove":
                at.pop(int(last))
            else:
                at[int(last)] = step["value"]
        elif step["op"] == "remove":
            if last not in at:
                raise missing(("configmaps", "", step["path"]))
            del at[last]
        else:
            at[last] = step["value"]
    return dict(new)
