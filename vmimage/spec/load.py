"""images.yaml -> checked models; every mistake with its line, in words for people."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vmimage.spec.model import Spec, near_miss
from vmimage.spec.yaml_lines import Document, Problem, YamlPath, parse
from vmimage.util.errors import InputError
from vmimage.util.files import read_regular

MOST_BYTES = 1 << 20
MOST_PROBLEMS = 200
MOST_TOLD = 50
"""Problems that are told one by one."""
FOLLOWING = ("follows", "skew")
"""Keys of `upstream:` that name another pin."""
MOST_SHOWN = 80
"""Characters of what was found."""


def load_spec(path: Path, project: Path | None = None) -> Spec:
    """Read and check images.yaml.

    Args:
        project: Folder of the steps and tests that it names; that of the file when not given.

    Raises:
        InputError: It cannot be read or is wrong; the message lists every problem as `FILE:LINE: path: problem`.
    """
    try:
        text = read_regular(path, MOST_BYTES, follow=True).decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", hint="run from a checkout of the project") from error
    document = parse(text)
    spec: Spec | None = None
    problems = list(document.problems)
    if document.data is not None or not problems:
        try:
            spec = Spec.model_validate(document.data)
        except ValidationError as error:
            some = islice(error.errors(include_url=False), MOST_PROBLEMS)
            problems += [_problem(details, document) for details in some]  # type: ignore[arg-type]
        problems += islice(_dangling(document, project or path.parent), MOST_PROBLEMS)
        if spec and not problems:
            problems += [
                *_without_digest(spec, document),
                *_kept_in_vain(spec, document),
                *_shared_steps(spec, document),
                *_not_followed(spec, document),
            ]
    if problems or spec is None:
        lines = sorted({(p.line, f"{path.name}:{p.line}: {dotted(p.path)}{p.message}") for p in problems})
        told = [text for _, text in lines[:MOST_TOLD]]
        told += [f"and {len(lines) - MOST_TOLD} more"] if lines[MOST_TOLD:] else []
        raise InputError("\n".join(told), hint=f"correct {path}; README.md and docs/images.md explain the keys")
    return spec


def dotted(path: YamlPath) -> str:
    """Return a path as people write it: `images.toolbox.components[2]: `, or nothing for the whole file."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:MOST_SHOWN]}" for part in path)
    return f"{text.lstrip('.')}: " if text else ""


def _problem(details: dict[str, object], document: Document) -> Problem:
    """Turn one of pydantic's errors into a problem with a line and words for people."""
    # Pydantic adds parts of its own to a path ("[key]", a union's member); the file's path ends before them.
    location: YamlPath = tuple(details["loc"])  # type: ignore[arg-type]
    path = location
    kind = details["type"]
    if kind not in ("missing", "extra_forbidden"):
        while path and path not in document.lines:
            path = path[:-1]
    message = str(details["msg"]).removeprefix("Value error, ")
    raw = _shortened(document.raw.get(path))
    if kind == "extra_forbidden":
        message = f"unknown key{near_miss(str(path[-1]), _known_keys(path[:-1]))}"
    elif kind == "missing":
        message = "missing, it must be given"
    elif kind == "string_type" and raw is not None:
        message = f'text is needed; YAML reads this as another type, so write it in quotes: "{raw}"'
    elif kind == "string_pattern_mismatch":
        message = f"{raw or path[-1]!r} does not have the form {details['ctx']['pattern']}"  # type: ignore[index]
    elif raw is not None:
        message = f"{message} (found {raw!r})"
    return Problem(line=document.line(path), path=path, message=message)


def _shortened(text: str | None) -> str | None:
    return f"{text[:MOST_SHOWN]}…" if text and len(text) > MOST_SHOWN else text


def _known_keys(path: YamlPath) -> list[str]:
    """Return the keys that images.yaml may have at a path, from the JSON schema."""
    schema = _schema()
    node = _resolved(schema, schema)
    for part in path:
        named = next(iter(node.get("patternProperties", {}).values()), None)
        inner = node.get("properties", {}).get(part) or named or node.get("additionalProperties") or node.get("items")
        node = _resolved(inner, schema) if isinstance(inner, dict) else {}
    return list(node.get("properties", {}))


@functools.cache
def _schema() -> dict[str, Any]:
    return Spec.model_json_schema()


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow `$ref`, and the model in an optional (`anyOf` with null)."""
    for choice in node.get("anyOf", []):
        if "$ref" in choice:
            node = choice
    reference = node.get("$ref")
    resolved: dict[str, Any] = schema["$defs"][reference.rsplit("/", 1)[1]] if reference else node
    return resolved


def _at(data: object, path: YamlPath) -> object:
    """Return what plain data holds at a path, or None."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _names(data: object, *path: str) -> list[str]:
    """Return the keys of a mapping, or the entries of a list; what is no name is an empty one."""
    found = _at(data, path)
    return [each if isinstance(each, str) else "" for each in found] if isinstance(found, (dict, list)) else []


def _dangling(document: Document, project: Path) -> Iterator[Problem]:
    """Find names that point at nothing; on plain data, so that it also works in a file with other problems."""
    data = document.data
    references: list[tuple[YamlPath, str]] = [(("default",), "images")]
    for image in _names(data, "images"):
        references.append((("images", image, "base"), "bases"))
        parts = len(_names(data, "images", image, "components"))
        references += [(("images", image, "components", i), "components") for i in range(parts)]
    for component in _names(data, "components"):
        parts = len(_names(data, "components", component, "pins"))
        references += [(("components", component, "pins", i), "pins") for i in range(parts)]
    references += [(("pins", pin, "upstream", key), "pins") for pin in _names(data, "pins") for key in FOLLOWING]
    known = {kind: dict.fromkeys(_names(data, kind)) for kind in ("images", "bases", "components", "pins")}
    for path, kind in references:
        name = _at(data, path)
        if isinstance(name, str) and name not in known[kind]:
            message = f"no such entry in {kind}: {name[:MOST_SHOWN]!r}{near_miss(name, list(known[kind]))}"
            yield Problem(line=document.line(path), path=path, message=message)
    for component in _names(data, "components"):
        step = _at(data, ("components", component, "step"))
        needed = [f"tests/image/test_{component}.py"] + [f"provision/{step}"] * isinstance(step, str)
        for file in needed:
            if not (project / file).is_file():
                path = ("components", component)
                yield Problem(line=document.line((*path, "step")), path=path, message=f"{file} is missing")


def _without_digest(spec: Spec, document: Document) -> Iterator[Problem]:
    """Find pins that an image needs for an architecture they have no digest for."""
    for name, image in spec.images.items():
        arch = spec.bases[image.base].arch
        for pin in (pin for component in image.components for pin in spec.components[component].pins):
            if arch not in spec.pins[pin].arches:
                path: YamlPath = ("pins", pin, "sha256")
                message = f"no digest for {arch}, which images.{name} needs"
                yield Problem(line=document.line(path), path=path, message=message)


def _shared_steps(spec: Spec, document: Document) -> Iterator[Problem]:
    """Find two components with one step: it would run twice, and the second time on what the first left."""
    first: dict[str, str] = {}
    for name, component in spec.components.items():
        if component.step and component.step in first:
            path: YamlPath = ("components", name, "step")
            message = f"{component.step} is the step of {first[component.step]} already: give each a step of its own"
            yield Problem(line=document.line(path), path=path, message=message)
        elif component.step:
            first[component.step] = name


def _not_followed(spec: Spec, document: Document) -> Iterator[Problem]:
    """Find pins whose version is not that of the pin that they follow, and pins that nobody can follow."""
    for name, pin in spec.pins.items():
        for key in FOLLOWING:
            other = getattr(pin.upstream, key, None)
            led = spec.pins[other].upstream if other else None
            if other and (led is None or not led.version or led.skew):
                path: YamlPath = ("pins", name, "upstream", key)
                message = f"{other} has no upstream with a version of its own, without skew"
                yield Problem(line=document.line(path), path=path, message=message)
            elif other and key == "follows" and pin.version != spec.pins[other].version:
                path = ("pins", name, "version")
                message = f"{pin.version}, but it follows {other}, which has {spec.pins[other].version}"
                yield Problem(line=document.line(path), path=path, message=message)


def _kept_in_vain(spec: Spec, document: Document) -> Iterator[Problem]:
    """Find patterns in `keep` that no pattern in `exclude` covers: misspelt, or left over."""
    for name, base in spec.bases.items():
        for i, kept in enumerate(base.keep):
            if not any(fnmatchcase(kept, excluded) for excluded in base.exclude):
                path: YamlPath = ("bases", name, "keep", i)
                message = f"{kept!r} is in nothing that `exclude` names{near_miss(kept, list(base.exclude))}"
                yield Problem(line=document.line(path), path=path, message=message)
