"""Errors of a command whose standard output takes nothing any more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from invoke.exceptions import Exit

from vmimage.commands.session import errors_shown
from vmimage.util.console import Console
from vmimage.util.errors import InputError


@pytest.mark.parametrize(("json_lines", "error"), [(False, None), (True, None), (True, InputError("wrong"))])
def test_full_disk_behind_standard_output_is_no_traceback(
    json_lines: bool, error: InputError | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    console = Console(json_lines=json_lines)
    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it would write once more
    monkeypatch.setattr(sys, "stdout", full)

    def command() -> None:
        with errors_shown(console):
            if error:
                raise error
            console.say("an answer")
            console.event("an event")

    with pytest.raises(Exit) as left:
        command()
    assert left.value.code == (2 if error else 3)
    assert ("wrong" if error else "No space left on device") in str(left.value.message)
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(OSError, match="No space left"):
        full.close()
