"""Several builds at the same time, with a stand-in for the command that builds one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sandbox import INTERRUPTIBLE
from vmimage.commands.build_all import build_all
from vmimage.util.console import Console
from vmimage.util.errors import VmimageError

STAND_IN = """
import json, os, sys, time
image = sys.argv[2]
def say(event, **fields): print(json.dumps({"time": "t", "event": event, **fields}), flush=True)
say("run", log=f"/logs/{image}")
print("not JSON")
say("end", stage="bake", ok=image != "bad", seconds=1.0, outcome="x")
if image == "slow":
    open(os.environ["STARTED"], "w").close()
    time.sleep(60)
if image == "bad":
    say("error", message="it broke", hint="", exit_code=5)
    sys.exit(5)
if image in ("old", "older"):
    say("error", message="it is old", hint="install a newer one\\nor wait", exit_code=3)
    sys.exit(3)
say("result", release=f"/dist/{image}/1", arguments=sys.argv[4:])
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "invoke.py").write_text(STAND_IN)
    monkeypatch.setattr("vmimage.commands.build_all.PROJECT", tmp_path)


@pytest.mark.usefixtures("stand_in")
def test_each_build_is_told_with_its_image_and_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = build_all(["one", "two"], 2, ["--recheck"], Console(json_lines=True))
    assert [(each.image, each.exit_code, each.said, each.log) for each in outcomes] == [
        ("one", 0, "/dist/one/1", "/logs/one/run.log"),
        ("two", 0, "/dist/two/1", "/logs/two/run.log"),
    ]
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    results = {event["image"]: event["arguments"] for event in events if event["event"] == "result"}
    assert results == {"one": ["--recheck"], "two": ["--recheck"]}
    assert events[-1]["event"] == "summary"


@pytest.mark.usefixtures("stand_in")
def test_others_are_built_though_one_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(VmimageError, match=r"bad failed:\nit broke\nlog: /logs/bad/run\.log") as failed:
        build_all(["bad", "good"], 1, [], Console())
    assert failed.value.exit_code == 5
    said = capsys.readouterr().out
    assert "bad              FAILED" in said
    assert "good             released" in said


@pytest.mark.usefixtures("stand_in")
def test_hints_of_what_failed_are_told_with_their_images() -> None:
    with pytest.raises(VmimageError, match="old failed:\nit is old\nlog: ") as failed:
        build_all(["old", "bad", "older"], 1, [], Console())
    assert failed.value.hint == "old, older: install a newer one\nor wait"
    assert failed.value.exit_code == 3


def test_ctrl_c_ends_the_builds(tmp_path: Path) -> None:
    (tmp_path / "invoke.py").write_text(STAND_IN)
    script = (
        "from pathlib import Path\nimport vmimage.commands.build_all as many\n"
        "from vmimage.util.console import Console\n"
        f"many.PROJECT = Path({str(tmp_path)!r})\nmany.build_all(['slow', 'never'], 1, [], Console())\n"
    )
    started = tmp_path / "started"
    environment = {**os.environ, "STARTED": str(started)}
    with subprocess.Popen(
        [*INTERRUPTIBLE, sys.executable, "-c", script], stderr=subprocess.PIPE, env=environment
    ) as process:
        while not started.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) != 0
    assert str(tmp_path) not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout  # noqa: S607
