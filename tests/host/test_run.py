from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmimage.util.errors import BuildError, HostError, VerifyError
from vmimage.util.run import Confine, confined, orderly_signals, run, spawn, tail


def running(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended before, or while it was read
        return False


def wait_until(condition: object, seconds: float = 10.0) -> bool:
    assert callable(condition)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def commands_with(marker: str) -> list[int]:
    """Return the processes of this machine whose command line has a marker."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if marker.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def test_output_and_status() -> None:
    done = run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert (done.returncode, done.output) == (3, "out\nerr")


def test_lines_as_they_come() -> None:
    lines: list[str] = []
    run(["printf", "a\\nb\\n"], on_line=lines.append)
    assert lines == ["a", "b"]


def test_failure_shows_the_command_and_the_end_of_its_output() -> None:
    with pytest.raises(BuildError) as failed:
        run(["sh", "-c", "seq 100; exit 7"])
    assert "exit status 7" in failed.value.message
    assert failed.value.message.endswith("    100")
    assert "\n    70\n" not in failed.value.message


def test_error_type_is_the_callers() -> None:
    with pytest.raises(HostError):
        run(["false"], error=HostError)


@pytest.mark.parametrize("confine", list(Confine))
def test_missing_program(confine: Confine) -> None:
    with pytest.raises(BuildError, match="no-such-program"):
        run(["no-such-program"], confine=confine)


def test_timeout_kills_and_says_so() -> None:
    started = time.monotonic()
    with pytest.raises(BuildError, match="did not end within 0 s"):
        run(["sleep", "60"], timeout=0.3)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("confine", [Confine.TREE, Confine.FAKE_ROOT])
def test_end_of_the_block_ends_everything_that_was_started(confine: Confine) -> None:
    marker = f"3{os.getpid()}.{confine.name.count('E')}"
    with spawn(["sh", "-c", f"setsid sleep {marker} & sleep {marker}"], confine=confine):
        assert wait_until(lambda: len([p for p in commands_with(f"sleep\0{marker}") if running(p)]) == 2)
    assert wait_until(lambda: not [p for p in commands_with(f"sleep\0{marker}") if running(p)])


@pytest.mark.parametrize("confine", list(Confine))
def test_sigkill_of_the_parent_ends_everything_that_it_started(confine: Confine) -> None:
    marker = f"4{os.getpid()}.{confine.name.count('E')}"
    command = f"sleep {marker}" if confine is Confine.PROCESS else f"setsid sleep {marker} & sleep {marker}"
    count = 1 if confine is Confine.PROCESS else 2
    argv = command.split() if confine is Confine.PROCESS else ["sh", "-c", command]
    script = f"from vmimage.util.run import *\nrun({argv!r}, confine={confine})"
    parent = subprocess.Popen([sys.executable, "-c", script])
    assert wait_until(lambda: len([p for p in commands_with(f"sleep\0{marker}") if running(p)]) == count)
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not [p for p in commands_with(f"sleep\0{marker}") if running(p)])


def test_sigterm_closes_every_block_and_exits_as_signals_do(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom vmimage.util.run import orderly_signals\n"
        "with orderly_signals():\n  try:\n    print('ready', flush=True); time.sleep(60)\n"
        "  finally:\n    Path(sys.argv[1]).write_text('closed')\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, tmp_path / "mark"], stdout=subprocess.PIPE)
    assert child.stdout
    with child.stdout:
        child.stdout.readline()
        child.terminate()
        assert child.wait(timeout=20) == 128 + signal.SIGTERM
    assert (tmp_path / "mark").read_text() == "closed"


def test_output_ends_with_the_process_whatever_it_left_behind() -> None:
    marker = f"5{os.getpid()}"
    assert run(["sh", "-c", f"sleep {marker} & echo started"], timeout=30).output == "started"
    assert wait_until(lambda: not [p for p in commands_with(f"sleep\0{marker}") if running(p)])


def test_signal_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with orderly_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_fake_root_is_root_over_what_it_makes(tmp_path: Path) -> None:
    done = run(["sh", "-c", f"id -u; touch {tmp_path}/a; chown 5:6 {tmp_path}/a; stat -c %u:%g {tmp_path}/a"],
               confine=Confine.FAKE_ROOT)  # fmt: skip
    assert done.output == "0\n5:6"
    run(["rm", tmp_path / "a"], confine=Confine.FAKE_ROOT)


def test_confinement_without_root_uses_a_user_namespace() -> None:
    assert "--map-auto" in confined(["x"], Confine.FAKE_ROOT, is_root=False)
    assert "--user" in confined(["x"], Confine.TREE, is_root=False)
    assert not {"--user", "--map-auto"} & set(confined(["x"], Confine.FAKE_ROOT, is_root=True))


def test_tail_is_indented_and_has_no_blank_lines() -> None:
    assert tail("a\n\n b\n", 5) == "\n    a\n     b"


def test_output_without_an_end_is_cut_and_what_is_bounded_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(VerifyError, match="says more than 1000 characters"):
        run(["sh", "-c", "yes & tr '\\0' x < /dev/zero"], most_output=1000, error=VerifyError)
    assert run(["echo", "short"], most_output=1000).output == "short"
    assert "short" not in [record.message.removeprefix("| ") for record in caplog.records]
