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


class _CoreSchemaLoader(yaml.SafeLoader):
    """SafeLoader with the implicit types of YAML 1.2's core schema."""


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
    try:
        loader = _CoreSchemaLoader(text)
        node = loader.get_single_node()
        if node is not None:
            document.data = _build(loader, node, (), document, frozenset())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        document.problems.append(
            Problem(line=mark.line + 1 if mark else 1, path=(), message=f"not YAML: {error.problem or error.context}")
        )
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        document.problems.append(Problem(line=1, path=(), message=f"not YAML: {error}"))
    return document


def _build(
    loader: yaml.SafeLoader, node: yaml.Node, path: YamlPath, document: Document, parents: frozenset[int]
) -> object:
    document.lines[path] = node.start_mark.line + 1
    if id(node) in parents:
        raise ValueError(f"line {node.start_mark.line + 1}: an alias that contains itself")
    parents |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(loader, node, path, document, parents)
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, child, (*path, i), document, parents) for i, child in enumerate(node.value)]
    document.raw[path] = node.value
    return loader.construct_object(node)


def _build_mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, path: YamlPath, document: Document, parents: frozenset[int]
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
        mapping[key] = _build(loader, value_node, (*path, key), document, parents)
        document.lines[*path, key] = line
    return mapping
