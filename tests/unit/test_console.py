from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmimage.util.console import Console, human_bytes


def test_json_lines_on_standard_output_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(log_dir=tmp_path / "log", json_lines=True)
    console.say("for people")
    with console.stage("bake", "6 steps") as step:
        step.now("10-system [bold]")
        step.outcome = "good"
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["start", "step", "end"]
    assert all(event["stage"] == "bake" and event["time"] for event in events)
    assert (events[2]["ok"], events[2]["outcome"]) == (True, "good")
    assert err == ""


def test_log_on_a_full_disk_says_nothing_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.log").symlink_to("/dev/full")
    Console(log_dir=tmp_path).say("for people")
    assert capsys.readouterr() == ("for people\n", "")


def test_lines_of_threads_do_not_mix(capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(json_lines=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: console.event("x", number=number, text="y" * 9000), range(200)))
    lines = capfd.readouterr().out.splitlines()
    assert sorted(json.loads(line)["number"] for line in lines) == list(range(200))


def test_plain_lines_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().stage("bake", "6 steps [x]") as step:
        step.now("20-kubectl")
        step.outcome = "[done]"
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    first, second, third = err.splitlines()
    assert first.endswith("bake     6 steps [x]")
    assert "20-kubectl" in second
    assert " s  [done]" in third


def test_failed_stage_is_marked_and_the_error_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), Console(json_lines=True).stage("bake", ""):
        raise ValueError("no")
    end = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (end["ok"], end["outcome"]) == (False, "failed")


def test_log_has_everything(tmp_path: Path) -> None:
    console = Console(log_dir=tmp_path / "log")
    console.say("hello")
    with console.stage("base", "what"):
        pass
    text = (tmp_path / "log" / "run.log").read_text()
    assert "hello" in text
    assert '"stage": "base"' in text


def test_sizes_for_people() -> None:
    assert [human_bytes(n) for n in (0, 1023, 2048, 331 << 20, 40 << 30)] == [
        "0 B", "1023 B", "2 KiB", "331 MiB", "40.0 GiB",
    ]  # fmt: skip
