from __future__ import annotations

import time

import pytest
from hypothesis import given

from tests.any_text import any_text
from vmimage import PROJECT
from vmimage.spec import yaml_lines
from vmimage.spec.yaml_lines import parse


def test_keeps_lines_and_raw_text() -> None:
    document = parse("a:\n  - x: 1\n  - y: 4.30\n")
    assert document.data == {"a": [{"x": 1}, {"y": 4.3}]}
    assert document.line(("a", 1, "y")) == 3
    assert document.raw["a", 1, "y"] == "4.30"


def test_unknown_path_has_the_line_of_its_nearest_parent() -> None:
    document = parse("a:\n  b:\n    c: 1\n")
    assert document.line(("a", "b", "missing", 3)) == 2
    assert document.line(("nothing",)) == 1


@pytest.mark.parametrize("text", ["yes", "no", "on", "0644", "12:30", "1_000", "0x1f", "2026-11-23"])
def test_what_yaml_1_1_would_change_stays_text(text: str) -> None:
    assert parse(f"k: {text}").data == {"k": text}


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("-7", -7), ("1.5", 1.5), ("1e3", 1000.0), ("~", None), ("", None)]
)
def test_core_scalars_are_typed(text: str, value: object) -> None:
    assert parse(f"k: {text}").data == {"k": value}


def test_duplicate_key_names_both_lines() -> None:
    (problem,) = parse("a: 1\nb: 2\na: 3\n").problems
    assert (problem.line, problem.path) == (3, ("a",))
    assert "line 1" in problem.message


def test_all_duplicates_are_found() -> None:
    assert [problem.line for problem in parse("x:\n  a: 1\n  a: 2\ny:\n  - b: 1\n    b: 2\n").problems] == [3, 6]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1,\nb: 2", 2), ("a: 1\n\tb: 2", 2), ("a: *nowhere", 1), ("{1: 2}: x", 1), ("a: &x [*x]", 1)],
)
def test_broken_yaml_is_one_problem_with_its_line(text: str, line: int) -> None:
    problems = parse(text).problems
    assert problems
    assert problems[0].line == line


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: &x 1\nb: *x\n", 2, "aliases (*x) are not read: write out what it stands for"),
        ("a: &x [1]\nb: [*x, *x]\n", 2, "aliases (*x)"),
        ("<<: *base", 1, "aliases (*base)"),
        ("a:\n  !!timestamp x", 2, "tags (tag:yaml.org,2002:timestamp) are not read"),
        ("a: !!bool x", 1, "tags (tag:yaml.org,2002:bool)"),
        ("a: !!int ''", 1, "tags (tag:yaml.org,2002:int)"),
        ("a: !!float ''", 1, "tags (tag:yaml.org,2002:float)"),
        ("a: !!binary x", 1, "tags (tag:yaml.org,2002:binary)"),
        ("a: !!set {x}", 1, "tags (tag:yaml.org,2002:set)"),
        ("a: !!python/object/apply:os.system [x]", 1, "tags ("),
        ("!!omap a", 1, "tags ("),
        ("a: ! x", 1, "tags (!)"),
        ("!!str a: 1", 1, "tags ("),
        ("a: 1\nb: " + "9" * 5000, 2, "a number of more than 30 digits"),
        ("a: " + "1" * 20 + "." + "1" * 5000, 1, "a number of more than 30 digits"),
        ("a: 1\nb: \0", 2, "special characters are not allowed"),
    ],
)
def test_what_is_not_read_is_told_with_its_line(text: str, line: int, said: str) -> None:
    (problem,) = parse(text).problems
    assert problem.line == line
    assert problem.message.removeprefix("not YAML: ").startswith(said)


@pytest.mark.parametrize(
    "text", [(PROJECT / "images.yaml").read_text(), "a: [1,\nb: 2", "a: 1\n\tb: 2", "ä: 1\nb: \0", "a: é\r\nb: 'x\n y'"]
)
def test_both_parsers_say_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse(text)
    monkeypatch.setattr(yaml_lines, "_LOADERS", [yaml_lines._Loader])
    assert parse(text) == found


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
LARGE = {
    "aliases": BOMB,
    "keys": "".join(f"k{number}: 1\n" for number in range(20_000)),
    "values": "a: [" + "x," * 100_000 + "]",
    "depth of lists": "[" * 100_000,
    "depth of mappings": "".join(f"{' ' * depth}a:\n" for depth in range(500)),
    "dashes": "- " * 100_000,
    "questions": "? " * 100_000,
    "a long text": "a: " + "x" * (200 << 10),
    "many lines": "a: |\n" + "  x\n" * (50 << 10),
    "comments": "# x\n" * (60 << 10),
    "a large file": "a: 1\n" * (1 << 20),
    "quotes": "a: '" + "''" * (100 << 10) + "'",
    "anchors": "&a " * 50_000,
    "a duplicate": "a: 1\n" * 4000,
}


@pytest.mark.parametrize("what", LARGE)
def test_what_is_large_or_deep_ends_soon(what: str) -> None:
    started = time.process_time()
    parse(LARGE[what])
    assert time.process_time() - started < 2.0


@given(any_text(max_size=60))
def test_no_text_raises(text: str) -> None:
    parse(text)
