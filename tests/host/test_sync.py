"""`invoke share --sync`: the host's half, and the machine's half as a program of this host; the network is a socket."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmimage.access.notify import Notifier
from vmimage.access.sync.copier import Copier
from vmimage.access.sync.session import AGENT
from vmimage.access.sync.tree import Tree
from vmimage.util.console import Console
from vmimage.util.errors import HostError

SECONDS = 60.0
EVENTS = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
libc.inotify_add_watch(fd, os.fsencode(sys.argv[1]), 0x2 | 0x8 | 0x100 | 0x200)
print("watching", flush=True)
names = {0x2: "modify", 0x8: "close_write", 0x100: "create", 0x200: "delete"}
while data := os.read(fd, 65536):
    while data:
        _, mask, _, size = struct.unpack_from("iIII", data)
        print(names.get(mask), data[16 : 16 + size].rstrip(b"\\0").decode(), flush=True)
        data = data[16 + size :]
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "a.py").write_text("a = 1\n")
    (folder / "src" / "run").write_text("#!/bin/sh\n")
    (folder / "src" / "run").chmod(0o755)
    (folder / "link").symlink_to("src/a.py")
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


@contextmanager
def agent(there: Path, wrap: tuple[str, ...] = ()) -> Iterator[socket.socket]:
    """Run the machine's half."""
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "XDG_STATE_HOME": str(there.parent / "state")}
    argv = [*wrap, sys.executable, "-c", AGENT, str(there)]
    with ours, subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), env=environment) as process:
        theirs.close()
        try:
            yield ours
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            process.wait(timeout=SECONDS)


@contextmanager
def synced(here: Path, there: Path, *exclude: str, wrap: tuple[str, ...] = ()) -> Iterator[Copier]:
    """Copy, and follow what changes."""
    with agent(there, wrap) as stream:
        copier = Copier(Tree(here, exclude), stream, Console())
        copier.start()
        copier.copy_all()
        stop = threading.Event()
        notifier = Notifier(here, everything=True)
        threads = [
            threading.Thread(target=notifier.follow, args=(copier.tell, stop, copier.lost.is_set)),
            threading.Thread(target=copier.follow),
        ]
        for thread in threads:
            thread.start()
        try:
            yield copier
        finally:
            stop.set()
            stream.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(SECONDS)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def tree(folder: Path) -> dict[str, object]:
    """Return path -> content, target or kind, and mode."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = "dir"
        else:
            found[name] = (path.read_bytes(), path.stat().st_mode & 0o777, path.stat().st_mtime_ns)
    return found


def is_the_same(here: Path, there: Path) -> bool:
    try:
        return tree(there) == tree(here)
    except FileNotFoundError:
        return False  # it goes just now


def test_first_copy_and_what_changes_after_it(here: Path, there: Path) -> None:
    with synced(here, there):
        assert tree(there) == tree(here)
        (here / "src" / "a.py").write_text("a = 2\n")
        (here / "new" / "deep").mkdir(parents=True)
        (here / "new" / "deep" / "b").write_bytes(os.urandom(3 << 20))
        (here / "link").unlink()
        until(lambda: is_the_same(here, there))
        shutil.rmtree(here / "new")
        (here / "src").rename(here / "moved")
        until(lambda: is_the_same(here, there))
        (here / "moved" / "a.py").unlink()
        (here / "moved" / "a.py").mkdir()
        (here / "moved" / "a.py" / "x").write_text("")
        until(lambda: is_the_same(here, there))
    (here / "while nobody looked").write_text("")
    shutil.rmtree(here / "moved")
    with synced(here, there):
        assert tree(there) == tree(here)


def test_rules_leave_out_and_what_the_machine_makes_stays(here: Path, there: Path) -> None:
    (here / ".gitignore").write_text("node_modules/\n*.log\n!keep.log\n!\n[z-a]\n")
    (here / "src" / ".gitignore").write_text("/generated\n!*.log\n")
    for name in ("node_modules/x", "a.log", "keep.log", "src/b.log", "src/generated", "secret/key"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("here")
    with synced(here, there, "secret"):
        names = set(tree(there))
        assert {"keep.log", "src/b.log"} <= names
        assert not names & {"node_modules", "a.log", "src/generated", "secret", "secret/key"}
        (there / "node_modules").mkdir()
        (there / "node_modules" / "mine").write_text("")
        (there / "src" / "mine").write_text("")
        shutil.rmtree(here / "node_modules")
        shutil.rmtree(here / "src")
        until(lambda: not (there / "src" / "a.py").exists())
        # What becomes left out stays as well.
        (here / ".gitignore").write_text("keep.log\n")
        until(lambda: (there / ".gitignore").read_text() == "keep.log\n")
    assert {"node_modules/mine", "src/mine", "keep.log", "a.log"} <= set(tree(there))
    with synced(here, there, "secret"):
        assert {"node_modules/mine", "src/mine", "keep.log"} <= set(tree(there))
        assert "src/a.py" not in tree(there)


class Said:
    """What the user is told."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd, self._text = capfd, ""

    def __contains__(self, text: str) -> bool:
        self._text += self._capfd.readouterr().out
        return text in self._text


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    return Said(capfd)


def test_what_the_machine_changed_is_never_lost(here: Path, there: Path, said: Said) -> None:
    (there / "src").mkdir()
    (there / "src" / "run").write_text("another, from before")
    with synced(here, there):
        assert "changed in the machine, so not overwritten" in said
        assert "  src/run\n" in said
        (there / "src" / "a.py").write_text("theirs")
        (here / "src" / "a.py").write_text("ours, at the same time")
        until(lambda: "  src/a.py\n" in said)
        assert (there / "src" / "a.py").read_text() == "theirs"
        (there / "link").unlink()
        (there / "link").symlink_to("/")
        (here / "link").unlink()
        until(lambda: "  link\n" in said)
        (there / "src" / "a.py").unlink()
        until(lambda: (there / "src" / "a.py").exists() and (there / "src" / "a.py").read_text().startswith("ours"))
    assert (there / "src" / "run").read_text() == "another, from before"
    assert (there / "link").is_symlink()


def test_directory_that_is_not_mounted_takes_nothing_away(here: Path, there: Path, said: Said) -> None:
    with synced(here, there) as copier:
        before = tree(there)
        here.rename(here.with_name("elsewhere"))
        copier.tell({b"."})
        until(lambda: "gone or empty here" in said)
        assert tree(there) == before
    with agent(there) as stream:
        again = Copier(Tree(here), stream, Console())
        again.start()
        again.copy_all()
    assert tree(there) == before
    here.mkdir()
    with synced(here, there):
        (here / "new").write_text("")
        until(lambda: is_the_same(here, there))


def test_link_of_the_machine_leads_nowhere(here: Path, there: Path, tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (outside / "a.py").write_text("outside")
    with synced(here, there):
        shutil.rmtree(there / "src")
        (there / "src").symlink_to(outside)
        (here / "src" / "a.py").write_text("new")
        (here / "src" / "b.py").write_text("new")
        shutil.rmtree(here / "src")
        (here / "end").write_text("")
        until((there / "end").exists)
    assert tree(outside) == {"a.py": tree(outside)["a.py"]}
    assert (outside / "a.py").read_text() == "outside"


def test_a_change_is_there_soon_and_its_events_are_real(here: Path, there: Path) -> None:
    argv = [sys.executable, "-c", EVENTS, str(there / "src")]
    with synced(here, there), subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout
        events.stdout.readline()
        (here / "src" / "a.py").write_text("changed\n")
        (here / "src" / "new").write_text("new\n")
        until((there / "src" / "new").exists)
        (here / "src" / "new").unlink()
        until(lambda: not (there / "src" / "new").exists())
        (here / "src" / "last").write_text("")
        seen = set()
        for line in events.stdout:
            seen.add(line.strip())
            if line.strip() == "create last":
                break
        events.kill()
    assert {"modify a.py", "close_write a.py", "create new", "delete new"} <= seen
    assert "create a.py" not in seen, "it is the same file, so nobody who holds it open is left behind"


def test_many_files_of_another_branch(here: Path, there: Path) -> None:
    for number in range(2_000):
        folder = here / f"d{number % 50}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{number}").write_text("one")
    with synced(here, there):
        assert len(tree(there)) == len(tree(here))
        shutil.rmtree(here / "d7")
        for path in sorted(here.glob("d1*/*")):
            path.write_text("two")
        for path in sorted(here.glob("d2*")):
            path.rename(here / f"moved-{path.name}")
        until(lambda: is_the_same(here, there))


def test_full_disk_loses_nothing_and_is_gone_on_with(here: Path, there: Path, said: Said) -> None:
    # What was copied is noted on the same disk.
    shell = 'mount -t tmpfs -o size=96k none "$0"; XDG_STATE_HOME="$0/state" "$@"; cp -a "$0/." "$0/../after"'
    (after := there.parent / "after").mkdir()
    (here / "src" / "a.py").write_bytes(bytes(4096))
    with synced(here, there, wrap=("unshare", "-rm", "sh", "-c", shell, str(there))):
        (here / "src" / "a.py").write_bytes(os.urandom(1 << 20))
        (here / "large").write_bytes(os.urandom(3 << 20))
        until(lambda: "the machine's disk is full" in said)
        (here / "src" / "b.py").write_text("there is room for it")
        time.sleep(1)
    assert (after / "src" / "a.py").read_bytes() == bytes(4096), "as it was"
    assert (after / "src" / "b.py").read_text() == "there is room for it"
    assert sorted(path.name for path in after.iterdir()) == ["link", "src", "state"]


def test_what_may_not_be_written_is_told_and_all_else_is_copied(here: Path, there: Path, said: Said) -> None:
    (folder := there / "src").mkdir(mode=0o555)
    (here / "src" / "sub").mkdir()
    # Root may write everywhere; without this right, it is as any other user.
    with synced(here, there, wrap=("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")):
        assert "not copied, and tried again: Permission denied" in said
        assert (there / "link").is_symlink()
        (here / "after").write_text("")
        until((there / "after").exists)
        folder.chmod(0o755)
        until(lambda: (folder / "sub").exists() and (folder / "run").exists())


def test_two_do_not_copy_to_the_same_place(here: Path, there: Path) -> None:
    with synced(here, there), agent(there) as stream:
        second = Copier(Tree(here), stream, Console())
        second.start()
        with pytest.raises(HostError, match="another `invoke share --sync` copies to it"):
            second.copy_all()


@pytest.mark.parametrize(
    "answer",
    [
        b"no json\n",
        b"[]\n",
        b'{"done": {}}\n',
        b'{"done": "1"}\n{"want": 5}\n',
        b'{"want": "../secret"}\n{"want": "/etc/passwd"}\n{"want": "src/../../secret"}\n',
        b'{"unknown": "../secret"}\n',
        b"[" * 100_000 + b"\n",
        b"x" * 100_000,
        b"",
    ],
)
def test_machine_that_answers_what_it_likes_gets_nothing_else(here: Path, answer: bytes) -> None:
    (here.parent / "secret").write_text("secret-content")
    ours, theirs = socket.socketpair()
    copier = Copier(Tree(here), ours, Console())
    got = bytearray()

    def play() -> None:
        theirs.sendall(answer)
        theirs.settimeout(1)
        try:
            while data := theirs.recv(65536):
                got.extend(data)
        except TimeoutError:
            theirs.close()

    with ours, theirs:
        machine = threading.Thread(target=play)
        copier.start()
        machine.start()
        with pytest.raises(HostError):
            copier.copy_all()
        machine.join()
    assert b"secret-content" not in got
