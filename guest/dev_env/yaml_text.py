"""YAML: written so that helm and PyYAML read it alike; and what helm reads without a word, but not as it was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

# Words that need no quotes: they begin with a letter, and no version of YAML reads one as something else.
PLAIN = re.compile(r"(?!(?i:y|n|yes|no|on|off|true|false|null)$)[A-Za-z/][A-Za-z0-9_./-]*")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML leaves 1e3 and 0o17 bare, which are numbers for Helm.
    style = None if PLAIN.fullmatch(value) else "|" if "\n" in value else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(value: object) -> str:
    """Return JSON-like data as YAML, in blocks."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=float("inf")))


@dataclass
class _Frame:
    """A list or a mapping whose end has not come yet; in a mapping, keys and values take turns."""

    mapping: bool
    keys: set[str] = field(default_factory=set)
    at_key: bool = True


def faults(text: str, depth: int) -> Iterator[tuple[int, str]]:
    """Yield (line, fault) for what helm takes, but not as it was meant: a second document, a key that comes twice.

    Args:
        depth: How deep it may be nested; what is deeper is not read on.
    """
    # Only what is said, event by event, and not what it means: that helm reads, whose YAML is not quite PyYAML's.
    frames: list[_Frame] = []
    documents = 0
    for event in _events(text):
        line = event.start_mark.line + 1
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            yield line, "a second document begins; put all into one"
            return
        if again := _nested(frames, event):
            yield line, f"{again}: this key is here twice"
        if len(frames) > depth:
            yield line, f"it is nested more than {depth} deep"
            return


def _nested(frames: list[_Frame], event: yaml.Event) -> str:
    """Follow an event into or out of a list or a mapping; returns a key that was there before."""
    again = ""
    if isinstance(event, yaml.NodeEvent):
        again = _repeated(frames[-1], event) if frames else ""
        if isinstance(event, yaml.CollectionStartEvent):
            frames.append(_Frame(isinstance(event, yaml.MappingStartEvent)))
    elif isinstance(event, yaml.CollectionEndEvent):
        frames.pop()
    return again


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return  # helm says what is wrong


def _repeated(frame: _Frame, event: yaml.NodeEvent) -> str:
    """Note a key or a value in a mapping; returns the key if it was there before."""
    was_key, frame.at_key = frame.at_key, not frame.at_key
    if not frame.mapping or not was_key or not isinstance(event, yaml.ScalarEvent):
        return ""
    key = str(event.value)
    if key in frame.keys and key != "<<":
        return key or '""'
    frame.keys.add(key)
    return ""


def too_deep(data: object, most: int) -> bool:
    """Tell whether JSON-like data is nested deeper than so many levels."""
    level = [data]
    for _ in range(most):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True
