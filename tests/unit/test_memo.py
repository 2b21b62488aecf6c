from __future__ import annotations

from pathlib import Path

import pytest

from vmimage.util.memo import Memo, stamps


def never() -> object:
    pytest.fail("asked again")


def test_answer_holds_until_its_stamp_changes(tmp_path: Path) -> None:
    path = tmp_path / "memo.json"
    assert Memo(path).get("q", [1], lambda: "a") == "a"
    assert Memo(path).get("q", [1], never) == "a"
    assert Memo(path).get("q", [2], lambda: "b") == "b"
    assert Memo(path).get("q", [2], never) == "b"
    assert [found.name for found in tmp_path.iterdir()] == ["memo.json"]


def test_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "memo.json"
    for text in ("{", "[1]", '{"q": "a"}', '{"q": [1]}'):
        path.write_text(text)
        assert Memo(path).get("q", 1, lambda: "new") == "new"


def test_without_a_file_nothing_is_remembered() -> None:
    memo = Memo()
    assert [memo.get("q", 1, lambda: 1), memo.get("q", 1, lambda: 2)] == [1, 2]


def test_stamps_change_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1")
    before = stamps([file, tmp_path / "none"])
    assert len(before) == 1
    file.write_text("22")
    assert stamps([file]) != before
