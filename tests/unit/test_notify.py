"""Changes on this host, and directories that cannot be watched, or are other ones all at once."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import watchfiles

from vmimage.access import inotify, notify
from vmimage.access.confined import Folder
from vmimage.access.inotify import unwatched
from vmimage.access.notify import Notifier, look_through
from vmimage.access.share import Presence
from vmimage.util.console import Console


class Watched:
    """What is told of a directory, and what is said beside."""

    def __init__(self) -> None:
        self.told: set[bytes] = set()
        self.said: list[str] = []

    def until(self, *names: bytes) -> None:
        end = time.monotonic() + 10
        while not self.told.issuperset(names):
            assert time.monotonic() < end, (self.told, self.said)
            time.sleep(0.02)


def has_watches(root: Path) -> bool:
    """Tell whether a directory is watched by now, with all in it."""
    return root.stat().st_ino in inotify._numbers() and not unwatched(str(root), look_through(root, 0).folders)


@contextlib.contextmanager
def watching(root: Path, settled: float = 0.0) -> Iterator[Watched]:
    """Watch a directory for the length of a `with` block.

    Args:
        settled: Seconds after which it is watched, if not by watches of the system.
    """
    found, stop = Watched(), threading.Event()
    notifier = Notifier(root, found.said.append)
    thread = threading.Thread(target=notifier.follow, args=(found.told.update, stop))
    thread.start()
    end = time.monotonic() + 10
    while not settled and not has_watches(root) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(settled)
    try:
        yield found
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(notify, "LOOK_MILLISECONDS", 60)


@pytest.mark.parametrize("where", ["plain", "p/.git/wt/site", "q/node_modules/@acme/ui", "r/__pycache__"])
def test_changes_are_told_wherever_the_directory_is(where: str, tmp_path: Path) -> None:
    root = tmp_path / where
    for folder in ("sub", ".git", "sub/node_modules"):
        (root / folder).mkdir(parents=True)
    with watching(root) as watched:
        (root / ".git" / "index").touch()
        (root / "sub" / "node_modules" / "x").touch()
        (root / "page~").touch()
        (root / "page").touch()
        (root / "sub" / "page").touch()
        watched.until(b"page", b"sub/page")
    assert not {name for name in watched.told if b".git" in name or b"node_modules" in name or name.endswith(b"~")}
    assert watched.said == []


@pytest.mark.parametrize("how", ["made anew", "swapped", "gone for a while"])
def test_directory_that_is_made_anew_is_watched_again(how: str, tmp_path: Path) -> None:
    root = tmp_path / "public"
    root.mkdir()
    (root / "old").touch()
    with watching(root) as watched:
        if how == "swapped":
            (tmp_path / "new").mkdir()
            (tmp_path / "new" / "long before").touch()
            os.utime(tmp_path / "new" / "long before", (1, 1))
            root.rename(tmp_path / "before")
            (tmp_path / "new").rename(root)
        else:
            shutil.rmtree(root)
            time.sleep(0.3 if how == "gone for a while" else 0)
            root.mkdir()
        (root / "first").touch()
        watched.until(b"first", *([b"long before"] if how == "swapped" else []))
        (root / "sub").mkdir()
        (root / "sub" / "second").touch()
        watched.until(b"sub/second")
        root.joinpath("third").touch()
        watched.until(b"third")


def test_what_is_in_a_new_directory_is_told(tmp_path: Path) -> None:
    with watching(tmp_path / ".") as watched:
        for number in range(20):
            folder = tmp_path / f"d{number}" / "deep"
            folder.mkdir(parents=True)
            (folder / "page").touch()
        watched.until(*(b"d%d/deep/page" % number for number in range(20)))


def test_names_that_are_no_utf8_are_told_too(tmp_path: Path) -> None:
    inner = os.fsencode(tmp_path) + b"/d\xff"
    Path(os.fsdecode(inner)).mkdir()
    with watching(tmp_path) as watched:
        Path(os.fsdecode(inner + b"/x")).touch()
        watched.until(b"d\xff/x")
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe")).touch()
        (tmp_path / "page").touch()
        watched.until(b"\xfe", b"page")
        (tmp_path / "later").touch()
        watched.until(b"later")
    assert watched.said == ["--notify: names that are no UTF-8 are told a second later"]


def test_directory_whose_own_name_is_no_utf8(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    root.mkdir()
    with watching(root) as watched:
        (root / "page").touch()
        watched.until(b"page")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_without_watches_the_files_are_looked_at(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = watchfiles.watch

    def few(*paths: str, **options: Any) -> Any:
        if not options["force_polling"]:
            raise OSError(number, "OS file watch limit reached")
        return real(*paths, **options)

    monkeypatch.setattr(notify, "watch", few)
    with watching(tmp_path, settled=0.5) as watched:
        (tmp_path / "page").touch()
        watched.until(b"page")
    assert len(watched.said) == 1
    assert "the system has no watches left, so the files are looked at once a second" in watched.said[0]


def test_what_goes_wrong_in_the_watcher_is_said_once_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: str, **__: Any) -> Any:
        raise RuntimeError("no idea")

    monkeypatch.setattr(notify, "watch", broken)
    with watching(tmp_path, settled=0.5) as watched:
        (tmp_path / "page").touch()
        watched.until(b"page")
    assert watched.said == ["--notify: no idea"]


def test_look_through_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (tmp_path / str(number)).touch()
    assert len(look_through(tmp_path, 0).changed) == 30
    assert look_through(tmp_path, time.time() + 9).changed == []
    monkeypatch.setattr(notify, "REMEMBERED", 7)
    assert len(look_through(tmp_path, 0).changed) == 7
    assert look_through(tmp_path / "none", 0).changed == []


def test_directory_that_is_gone_is_said_and_that_it_is_there_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "public"
    root.mkdir()
    with contextlib.closing(Folder(root)) as folder:
        presence = Presence(folder, Console())
        presence.look()
        root.rmdir()
        presence.look()
        assert capsys.readouterr().out == ""
        presence.look()
        presence.look()
        assert capsys.readouterr().out == f"{root} is gone; the machine sees nothing until it is there again\n"
        root.mkdir()
        presence.look()
        presence.look()
        assert capsys.readouterr().out == f"{root} is there again, and is what the machine sees\n"


@pytest.mark.parametrize("alive", [True, False], ids=["killed", "shut down"])
def test_end_of_what_touches_is_told_if_the_session_goes_on(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is shut down ends its programs first; then `invoke share` says that it waits for it."""
    monkeypatch.setattr(notify, "GOING_SECONDS", 0.2)
    found = Watched()
    looked = threading.Event()

    def is_active() -> bool:
        looked.set()
        return alive

    channel: Any = SimpleNamespace(
        settimeout=lambda _: None,
        sendall=found.told.add,
        exit_status_ready=lambda: True,
        recv_stderr_ready=lambda: True,
        recv_stderr=lambda _: b"Killed\n",
        get_transport=lambda: SimpleNamespace(is_active=is_active),
        close=lambda: None,
    )
    notifier = Notifier(tmp_path, found.said.append)
    # Twice, as in two sessions.
    for _ in range(2):
        looked.clear()
        with notifier.touching(channel):
            assert looked.wait(10)
    told = "--notify: changes are not told to the machine any more: what tells them there has ended\n    Killed"
    assert found.said == [told] * alive
