"""YAML that keeps what PyYAML loses: line numbers, raw text and duplicate keys.

Only YAML 1.2's core scalars are typed (true/false, decimal numbers, null): with YAML 1.1, which PyYAML
reads by default, `yes` is True, `0644` is 420 and `12:30` is 750.
Source: https://yaml.org/spec/1.2.2/#103-core-schema
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field

import yaml

MOST_CHARACTERS = 256 << 10
MOST_VALUES = 5_000
MOST_DEPTH = 20
MOST_DIGITS = 30
YamlPath = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong in a file; `path` is the keys and list indexes that lead to it."""

    line: int
    path: YamlPath
    message: str


@dataclass(kw_only=True)
class Document:
    """A parsed YAML file: plain data, where each value stands, and how it was written."""

    data: object = None
    lines: dict[YamlPath, int] = field(default_factory=dict)
    raw: dict[YamlPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: YamlPath) -> int:
        """Return the line (from 1) of a path, or of its nearest parent that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class _RefusedError(yaml.MarkedYAMLError):
    """YAML, but of a kind that is not read here."""


class _CoreSchemaLoader(yaml.SafeLoader):
    """SafeLoader with the implicit types of YAML 1.2's core schema, and bounds.

    Aliases are refused: a few lines of them become billions of values. So are tags, by which a text says that it is of
    another type. What is counted is refused while it is read, before it costs time.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._values += 1
        self._depth += 1
        why = ""
        if isinstance(event, yaml.AliasEvent):
            why = f"aliases (*{event.anchor}) are not read: write out what it stands for"
        elif getattr(event, "tag", None) is not None:
            why = f"tags ({event.tag}) are not read: write text in quotes, and all else as it is"
        elif self._depth > MOST_DEPTH:
            why = f"more than {MOST_DEPTH} levels"
        elif self._values > MOST_VALUES:
            why = f"more than {MOST_VALUES} keys and values"
        if why:
            raise _RefusedError(problem=why, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_CoreSchemaLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("bool", r"true|false|True|False|TRUE|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)", "-+0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
]:
    _CoreSchemaLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first]
    )


def parse(text: str) -> Document:
    """Parse one YAML document; what is wrong with it is in `problems`, never raised."""
    document = Document()
    if len(text) > MOST_CHARACTERS:
        document.problems.append(Problem(line=1, path=(), message=f"more than {MOST_CHARACTERS >> 10} Ki characters"))
        return document
    try:
        loader = _CoreSchemaLoader(text)
        node = loader.get_single_node()
        if node is not None:
            document.data = _build(loader, node, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        kind = "" if isinstance(error, _RefusedError) else "not YAML: "
        document.problems.append(
            Problem(line=mark.line + 1 if mark else 1, path=(), message=f"{kind}{error.problem or error.context}")
        )
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(Problem(line=line, path=(), message=f"not YAML: {error.reason}"))
    except (yaml.YAMLError, ValueError) as error:
        document.problems.append(Problem(line=1, path=(), message=f"not YAML: {error}"))
    return document


def _build(loader: yaml.SafeLoader, node: yaml.Node, path: YamlPath, document: Document) -> object:
    document.lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(loader, node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, child, (*path, i), document) for i, child in enumerate(node.value)]
    document.raw[path] = node.value
    if len(node.value) > MOST_DIGITS and not node.tag.endswith(":str"):
        message = f"a number of more than {MOST_DIGITS} digits"
        document.problems.append(Problem(line=node.start_mark.line + 1, path=path, message=message))
        return None
    return loader.construct_object(node)


def _build_mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, path: YamlPath, document: Document
) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key: Hashable = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            document.problems.append(Problem(line=line, path=path, message="a key must be plain text"))
            continue
        if key in mapping:
            first = document.lines[*path, key]
            document.problems.append(
                Problem(line=line, path=(*path, key), message=f"duplicate key, first given in line {first}")
            )
            continue
        mapping[key] = _build(loader, value_node, (*path, key), document)
        document.lines[*path, key] = line
    return mapping
