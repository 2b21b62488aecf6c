from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.text(max_size=60))
def test_no_text_raises(text: str) -> None:
    parse(text)
