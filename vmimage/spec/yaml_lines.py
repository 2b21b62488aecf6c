"""YAML that keeps what PyYAML loses: line numbers, raw text and duplicate keys.

Only YAML 1.2's core scalars are typed (true/false, decimal numbers, null): with YAML 1.1, which PyYAML
reads by default, `yes` is True, `0644` is 420 and `12:30` is 750.
Source: https://yaml.org/spec/1.2.2/#103-core-schema
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import yaml
from yaml.composer import Composer, ComposerError
from yaml.constructor import SafeConstructor
from yaml.parser import Parser, ParserError
from yaml.reader import Reader, ReaderError
from yaml.resolver import Resolver
from yaml.scanner import Scanner, ScannerError

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


class _CoreSchema(Composer, SafeConstructor, Resolver):
    """The safe loader's half behind the parser, with the implicit types of YAML 1.2's core schema, and bounds.

    Aliases are refused: a few lines of them become billions of values. So are tags, by which a text says that it is of
    another type. What is counted is refused while it is read, before it costs time.
    """

    def __init__(self) -> None:
        for part in (Composer, SafeConstructor, Resolver):
            part.__init__(self)
        self._values = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[attr-defined]  # of the parser
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


_CoreSchema.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("bool", r"true|false|True|False|TRUE|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(0|[1-9][0-9]*)(\.[0-9]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)", "-+0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
]:
    _CoreSchema.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first]
    )


class _Loader(_CoreSchema, Reader, Scanner, Parser):
    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        _CoreSchema.__init__(self)


_LOADERS: list[Callable[[str], _CoreSchema]] = [_Loader]

# The parser in C, where it is there, is several times as fast.
if yaml.__with_libyaml__:
    from yaml.cyaml import CParser  # type: ignore[attr-defined]

    class _FastLoader(_CoreSchema, CParser):
        def __init__(self, text: str) -> None:
            CParser.__init__(self, text)
            _CoreSchema.__init__(self)

    _LOADERS.insert(0, _FastLoader)


def parse(text: str) -> Document:
    """Parse one YAML document; what is wrong with it is in `problems`, never raised."""
    document = Document()
    if len(text) > MOST_CHARACTERS:
        document.problems.append(Problem(line=1, path=(), message=f"more than {MOST_CHARACTERS >> 10} Ki characters"))
        return document
    try:
        loader, node = _composed(text)
        if node is not None:
            document.data = _build(loader, node, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        kind = "" if isinstance(error, _RefusedError) else "not YAML: "
        document.problems.append(
            Problem(line=mark.line + 1 if mark else 1, path=(), message=f"{kind}{error.problem or error.context}")
        )
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append(Problem(line=line, path=(), message=f"not YAML: {error.reason}"))
    except (yaml.YAMLError, ValueError) as error:
        document.problems.append(Problem(line=1, path=(), message=f"not YAML: {error}"))
    return document


def _composed(text: str) -> tuple[_CoreSchema, yaml.Node | None]:
    """Return the tree of a document, and the loader that makes values of its leaves.

    Raises:
        yaml.YAMLError, ValueError: It is not YAML, or refused.
    """
    for make in _LOADERS[:-1]:
        # What is not YAML is read again: the parser in Python names what it met, and the line more exactly.
        with contextlib.suppress(ScannerError, ParserError, ComposerError, ReaderError, ValueError):
            loader = make(text)
            return loader, loader.get_single_node()
    loader = _LOADERS[-1](text)
    return loader, loader.get_single_node()


def _build(loader: _CoreSchema, node: yaml.Node, path: YamlPath, document: Document) -> object:
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
    loader: _CoreSchema, node: yaml.MappingNode, path: YamlPath, document: Document
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
