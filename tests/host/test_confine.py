"""Programs on foreign files: what they can reach, what they may use, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmimage import PROJECT
from vmimage.util import confine
from vmimage.util.confine import DEFAULT, Limits, confined_argv, run_confined, shuts_in
from vmimage.util.errors import BuildError, HostError, VerifyError

needs_namespaces = pytest.mark.skipif(not shuts_in(), reason="user namespaces are forbidden here")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a name that is awkward to quote."""
    folder = tmp_path / "work, it's a folder"
    folder.mkdir()
    return folder


WRITE = 'echo in > "$1/in"; echo out > "$2/out"; cat "$1/in"'


@needs_namespaces
def test_only_the_work_folder_can_be_written(work: Path, tmp_path: Path) -> None:
    done = run_confined(["sh", "-c", WRITE, "sh", work, tmp_path], writable=[work], check=False)
    assert done.output.splitlines()[-1] == "in"
    assert "Read-only file system" in done.output
    assert list(tmp_path.iterdir()) == [work]
    assert "Read-only" in run_confined(["sh", "-c", WRITE, "sh", work, tmp_path], check=False).output.splitlines()[0]


UNDO = ("mount -o remount,bind,rw /", "mount -t tmpfs none {0}", "umount {0}", "unshare -rm mount -o remount,rw /")


@needs_namespaces
@pytest.mark.parametrize("undo", UNDO)
def test_it_cannot_be_undone_from_within(undo: str, tmp_path: Path) -> None:
    script = f'{undo.format(tmp_path)}; echo x > "$1/out"'
    assert run_confined(["sh", "-c", script, "sh", tmp_path], check=False).returncode
    assert not (tmp_path / "out").exists()


@needs_namespaces
def test_no_network_is_there(tmp_path: Path) -> None:
    call = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        subprocess.run([sys.executable, "-c", call, port], check=True)
        with pytest.raises(BuildError, match="Network is unreachable"):
            run_confined([sys.executable, "-c", call, port])


def test_limits_hold(work: Path) -> None:
    small = Limits(memory=256 << 20, file_size=1 << 20, seconds=20, open_files=16, output=1000)
    for script, why in (
        ("bytearray(1 << 30)", "MemoryError"),
        ("open(sys.argv[1] + '/large', 'wb').truncate(2 << 20)", "File too large"),
        ("[open('/dev/null') for _ in range(32)]", "Too many open files"),
        ("print('x' * 2000)", "says more than 1000 characters"),
    ):
        with pytest.raises(VerifyError, match=why):
            run_confined(
                [sys.executable, "-c", f"import sys; {script}", work], writable=[work], limits=small, error=VerifyError
            )


@pytest.mark.parametrize("script", ["while :; do :; done", "sleep 60"])
def test_what_does_not_end_is_ended(script: str) -> None:
    started = time.monotonic()
    with pytest.raises(BuildError, match="did not end within 1 s"):
        run_confined(["sh", "-c", script], limits=Limits(seconds=1), check=False)
    assert time.monotonic() - started < 10


def test_failure_tells_the_program_and_what_it_said() -> None:
    with pytest.raises(BuildError, match=r"`sh -c 'echo why; exit 3'` failed with exit status 3\n    why"):
        run_confined(["sh", "-c", "echo why; exit 3"])
    assert run_confined(["sh", "-c", "exit 3"], check=False).returncode == 3
    with pytest.raises(HostError, match=r"cannot confine no-such-program: .*No such file"):
        run_confined(["no-such-program"])
    with pytest.raises(BuildError, match=r"was ended by SIGSEGV"):
        run_confined(["sh", "-c", "kill -SEGV $$"], check=False)


def test_it_dies_with_us(tmp_path: Path) -> None:
    call = "from vmimage.util.confine import run_confined; import sys; run_confined(['sleep', sys.argv[1]])"
    seconds = f"61.{os.getpid()}"
    ours = subprocess.Popen([sys.executable, "-c", call, seconds], cwd=PROJECT)
    try:
        assert until(lambda: sleeping(seconds))
        ours.send_signal(signal.SIGKILL)
        assert until(lambda: not sleeping(seconds))
    finally:
        ours.kill()
        ours.wait()


def until(true: object) -> bool:
    assert callable(true)
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(true())


def sleeping(seconds: str) -> bool:
    """Tell whether `sleep SECONDS` runs."""
    wanted = f"sleep\0{seconds}\0".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes() == wanted:
                return True
        except OSError:
            continue
    return False


TOLD = """
import json, logging, sys
from pathlib import Path
logging.basicConfig(stream=sys.stderr)
from vmimage.util.confine import run_confined, shuts_in
work, outside = map(Path, sys.argv[1:3])
said = run_confined(["sh", "-c", 'echo x > "$1/in" && echo x > "$2/out"; id -u', "sh", work, outside],
                    writable=[work], check=False).output
print(json.dumps([shuts_in(), said, (work / "in").exists(), (outside / "out").exists()]))
"""


def told_by(*by: str, work: Path, outside: Path, project: Path = PROJECT) -> tuple[list[object], str]:
    """Return what a process that is started by other programs tells of itself, and its errors."""
    done = subprocess.run(
        [*by, sys.executable, "-c", TOLD, str(work), str(outside)],
        cwd=project,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(done.stdout)), done.stderr


# Root of a container that may make no namespaces.
FORBID = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-sys_admin "$@"'
NO_NAMESPACES = ("unshare", "--user", "--map-root-user", "sh", "-c", FORBID, "sh")


@needs_namespaces
def test_without_namespaces_the_limits_alone_hold_and_the_log_tells(work: Path, tmp_path: Path) -> None:
    (works, said, inside, outside), errors = told_by(*NO_NAMESPACES, work=work, outside=tmp_path)
    assert (works, said, inside, outside) == (False, "0", True, True)
    assert "have limits only, no namespaces: cannot confine true" in errors


@needs_namespaces
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_as_an_ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = Path("/tmp") / f"vmimage-confine-{os.getpid()}"  # noqa: S108 - other users reach no folder of pytest
    try:
        shutil.copytree(PROJECT / "vmimage", place / "vmimage", ignore=shutil.ignore_patterns("__pycache__"))
        (place / "work, theirs").mkdir()
        for path in [place, *place.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.chown(path, 65534, 65534)
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        (works, said, inside, outside), _ = told_by(*user, work=place / "work, theirs", outside=place, project=place)
        assert (works, inside, outside) == (True, True, False)
        assert str(said).splitlines()[-1] == "65534"
        assert "Read-only file system" in str(said)
    finally:
        shutil.rmtree(place)


def test_arguments_without_namespaces_have_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "shuts_in", lambda: False)
    assert "--writable" not in confined_argv(["true"], [Path("/x")], DEFAULT, shut_in=False)
    assert run_confined(["true"], writable=[Path("/x")]).returncode == 0
