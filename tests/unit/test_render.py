from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from vmimage.util.render import hcl_string, render


def test_unknown_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text("{{ nowhere }}")
    with pytest.raises(jinja2.UndefinedError, match="nowhere"):
        render(tmp_path / "a.j2", {})


def test_unknown_attribute_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text("{{ a.b }}")
    with pytest.raises(jinja2.UndefinedError):
        render(tmp_path / "a.j2", {"a": {}})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('say "hi"', r'"say \"hi\""'),
        ("a\\b\nc", r'"a\\b\nc"'),
        ("${path.root}", '"$${path.root}"'),
        ("%{if x}", '"%%{if x}"'),
        ("{{ .SSHHostPort }}", '"{{ .SSHHostPort }}"'),
        ("größe", '"größe"'),
    ],
)
def test_hcl_string(value: str, text: str) -> None:
    assert hcl_string(value) == text


def test_shell_filter(tmp_path: Path) -> None:
    (tmp_path / "a.j2").write_text("echo {{ x | sh }}")
    assert render(tmp_path / "a.j2", {"x": "a'; rm -rf b"}) == "echo 'a'\"'\"'; rm -rf b'"
