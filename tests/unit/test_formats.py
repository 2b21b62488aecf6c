"""What derives from the list of formats."""

from __future__ import annotations

import json

import pytest

from vmimage import PROJECT
from vmimage.formats.all import FORMATS, kind_of
from vmimage.formats.format import Format


@pytest.mark.parametrize("format_", FORMATS, ids=lambda each: each.name)
def test_readme_and_schema_say_what_its_file_says(format_: Format) -> None:
    readme = (PROJECT / "README.md").read_text().splitlines()
    assert [row for row in format_.rows() if row not in readme] == []
    schema = json.loads((PROJECT / "templates/images.schema.json").read_text())
    assert schema["$defs"]["Formats"]["properties"][format_.name]["description"] == format_.summary


def test_kind_is_told_by_the_longest_end_of_a_name() -> None:
    names = {each.name: kind_of(PROJECT / f"x-amd64.{each.name}") for each in FORMATS}
    assert names == {name: name for name in names}
    assert kind_of(PROJECT / "x.zip") == ""
