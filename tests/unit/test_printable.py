from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from invoke.exceptions import Exit

from tests.any_text import any_text
from vmimage.commands.session import errors_shown
from vmimage.util.console import Console
from vmimage.util.errors import VerifyError
from vmimage.util.printable import printable

HOSTILE = "title \x1b]0;owned\x07 \x9b31m red \x1b]52;c;eA==\x07 back\rover \u202eturned \udcff end"
SHOWN = r"title \x1b]0;owned\x07 \x9b31m red \x1b]52;c;eA==\x07 back\x0dover \u202eturned \xff end"


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("größe ✔\ttwo\nlines") == "größe ✔\ttwo\nlines"
    assert printable(SHOWN) == SHOWN


@given(any_text())
def test_nothing_else_is_left(text: str) -> None:
    shown = printable(text)
    assert not [each for each in shown if not each.isprintable() and each not in "\n\t\u00a0"]
    shown.encode()


@pytest.mark.parametrize("json_lines", [False, True])
def test_console_log_and_errors_show_it(json_lines: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    console = Console(log_dir=tmp_path, json_lines=json_lines)
    # Without bytes that are no UTF-8: pytest keeps what is logged, and its processes cannot tell each other of those.
    hostile, shown = HOSTILE.replace("\udcff", ""), SHOWN.replace(r" \xff", " ")
    console.say(hostile)
    with console.stage("stage", hostile) as step:
        step.now(hostile)
        step.outcome = hostile
    with pytest.raises(Exit) as ended, errors_shown(console):
        raise VerifyError(hostile, hint=hostile)
    out, err = capsys.readouterr()
    log = (tmp_path / "run.log").read_text()
    for text in (out, err, log, str(ended.value)):
        assert not {"\x1b", "\x9b", "\x07", "\r", "\u202e"} & set(text)
    if json_lines:
        said = [json.loads(line) for line in io.StringIO(out)]
        assert hostile in [event.get("what") for event in said], "a machine gets it as it is"
    else:
        assert shown in out
        assert err.replace("\n", "").count("owned") == 3
