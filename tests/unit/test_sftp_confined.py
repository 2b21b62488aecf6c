"""The SFTP service in hostile hands: nothing outside of the directory is reached, and nothing stops it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paramiko import sftp
from paramiko.message import Message

from tests.sftp_client import OWNER, Client, served
from tests.tools import before_call
from vmimage.access.confined import Folder
from vmimage.access.doors import outward_links
from vmimage.vm.limits import OWN_DESCRIPTORS


@pytest.mark.parametrize(
    "path",
    [
        "../secret/key",
        "/../secret/key",
        "sub/../../secret/key",
        "sub/../file",
        "..",
        "out/key",
        "chain/key",
        "absolute",
    ],
)
def test_nothing_outside_is_served(root: Path, path: str) -> None:
    (root / "out").symlink_to("../secret")
    (root / "chain").symlink_to("out")
    (root / "absolute").symlink_to(root.parent / "secret" / "key")
    name = path.encode()
    with served(Folder(root)) as (client, changed):
        refused = {sftp.SFTP_NO_SUCH_FILE, sftp.SFTP_PERMISSION_DENIED}
        for flags in (sftp.SFTP_FLAG_READ, sftp.SFTP_FLAG_WRITE, sftp.SFTP_FLAG_WRITE | sftp.SFTP_FLAG_CREATE):
            assert client.status(sftp.CMD_OPEN, name, flags, 0) in refused
        assert client.status(sftp.CMD_OPENDIR, name) in refused
        assert client.status(sftp.CMD_SETSTAT, name, 1, 0, 0) in refused, "truncated"
        if path != "absolute":  # that one is seen as the link that it is
            for kind in (sftp.CMD_STAT, sftp.CMD_LSTAT, sftp.CMD_READLINK, sftp.CMD_REMOVE, sftp.CMD_RMDIR):
                assert client.status(kind, name) in refused
            assert client.status(sftp.CMD_RENAME, name, b"stolen") in refused
            assert client.status(sftp.CMD_RENAME, b"file", name) in refused
            assert client.status(sftp.CMD_EXTENDED, b"hardlink@openssh.com", name, b"stolen") in refused
            assert client.status(sftp.CMD_SYMLINK, b"x", name) in refused
            assert client.status(sftp.CMD_MKDIR, name, 0) in refused
        assert changed == []
    assert [path.name for path in (root.parent / "secret").iterdir()] == ["key"]
    assert (root.parent / "secret" / "key").read_text() == "secret"
    assert (root / "file").read_text() == "content"


def test_a_link_swapped_in_leads_nowhere(root: Path) -> None:
    # Whoever may change the directory swaps a directory for a link and back; no answer may come from outside.
    (root.parent / "outside").mkdir()
    (root.parent / "outside" / "file").write_text("outside")
    (root / "sub" / "file").write_text("inside")
    (root / "link").symlink_to(root.parent / "outside")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for old, new in (("sub", "kept"), ("link", "sub"), ("sub", "link"), ("kept", "sub")):
                (root / old).rename(root / new)

    swapping = threading.Thread(target=swap)
    seen = set()
    with served(Folder(root)) as (client, _):
        swapping.start()
        for _ in range(300):
            with contextlib.suppress(OSError):
                found = client.lstat("sub/file")
                seen.add(found.st_size)
            with contextlib.suppress(OSError), client.open("sub/file") as file:
                seen.add(file.read())  # type: ignore[arg-type]
        stop.set()
        swapping.join()
    assert seen == {6, b"inside"}


def content(folder: Folder) -> str:
    with os.fdopen(folder.open(b"sub/file", os.O_RDONLY)) as file:
        return file.read()


LOOKS: dict[str, Callable[[Folder], object]] = {
    "lstat": lambda folder: folder.lstat(b"sub/file").st_size,
    "open": content,
    "entries": lambda folder: {name: found.st_size for name, found in folder.entries(b"sub")}.get(b"file"),
}


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("what", LOOKS)
def test_a_link_swapped_in_before_any_call_leads_nowhere(what: str, calls: int, root: Path) -> None:
    """The link is there for some calls of the operating system, whichever they are."""
    (root.parent / "outside").mkdir()
    (root.parent / "outside" / "file").write_text("outside")
    (root / "sub" / "file").write_text("inside")
    (root / "link").symlink_to(root.parent / "outside")
    seen = set[object]()

    def look() -> None:
        with contextlib.suppress(OSError):
            seen.add(LOOKS[what](folder))

    def swap() -> None:
        (root / "sub").rename(root / "kept")
        (root / "link").rename(root / "sub")

    def swap_back() -> None:
        if (root / "kept").exists():
            (root / "sub").rename(root / "link")
            (root / "kept").rename(root / "sub")

    with contextlib.closing(Folder(root)) as folder:
        for number in itertools.count(1):
            made = before_call(number, look, swap, *[lambda: None] * (calls - 1), swap_back)
            swap_back()
            if made < number:
                break
    assert number > 2
    assert seen <= {6, "inside"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(["..", ".", "", "sub", "out", "loop", "secret", "key", "file"]), max_size=6))
def test_no_path_leads_out(root: Path, parts: list[str]) -> None:
    for name, target in (("out", ".."), ("loop", "loop")):
        with contextlib.suppress(FileExistsError):
            (root / name).symlink_to(target)
    with contextlib.closing(Folder(root)) as folder:
        path = "/".join(parts).encode()
        inside = {(found.st_dev, found.st_ino) for found in map(os.lstat, [root, *root.rglob("*")])}
        with contextlib.suppress(OSError):
            found = folder.lstat(path)
            assert (found.st_dev, found.st_ino) in inside
        with contextlib.suppress(OSError):
            descriptor = folder.open(path, os.O_RDONLY)
            found = os.fstat(descriptor)
            os.close(descriptor)
            assert (found.st_dev, found.st_ino) in inside
        with contextlib.suppress(OSError):
            assert {name for name, _ in folder.entries(path)} <= {b"sub", b"file", b"out", b"loop"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.integers(1, 255), body=st.binary(max_size=60))
def test_no_packet_stops_the_service(root: Path, kind: int, body: bytes) -> None:
    with served(Folder(root, read_only=True)) as (client, _):
        message = Message()
        message.add_bytes(body)
        client._send_packet(kind, message)  # type: ignore[attr-defined]
        client._read_packet()  # type: ignore[attr-defined]
        assert client.ask(sftp.CMD_STAT, b"file")[0] == sftp.CMD_ATTRS


def test_read_only_refuses_every_change(root: Path) -> None:
    before = {path: path.stat() for path in [root, *root.rglob("*")]}
    with served(Folder(root, read_only=True)) as (client, changed):
        denied = sftp.SFTP_PERMISSION_DENIED
        for flags in (sftp.SFTP_FLAG_WRITE, sftp.SFTP_FLAG_READ | sftp.SFTP_FLAG_TRUNC, sftp.SFTP_FLAG_CREATE):
            assert client.status(sftp.CMD_OPEN, b"file", flags, 0) == denied
        changes: dict[int, list[bytes | int]] = {
            sftp.CMD_REMOVE: [b"file"],
            sftp.CMD_RMDIR: [b"sub"],
            sftp.CMD_MKDIR: [b"new", 0],
            sftp.CMD_RENAME: [b"file", b"new"],
            sftp.CMD_SYMLINK: [b"file", b"new"],
        }
        for kind, parts in changes.items():
            assert client.status(kind, *parts) == denied
        for extension in (b"posix-rename@openssh.com", b"hardlink@openssh.com"):
            assert client.status(sftp.CMD_EXTENDED, extension, b"file", b"new") == denied
        attributes = ((1, 0, 0), (4, 0o777), (8, 1, 1))
        for attribute in attributes:
            assert client.status(sftp.CMD_SETSTAT, b"file", *attribute) == denied
        handle = client.ask(sftp.CMD_OPEN, b"file", sftp.SFTP_FLAG_READ, 0)[1].get_binary()
        for attribute in attributes:
            assert client.status(sftp.CMD_FSETSTAT, handle, *attribute) == denied
        assert client.status(sftp.CMD_WRITE, handle, 0, 0, b"x") == sftp.SFTP_FAILURE
        with client.open("file") as file:
            assert file.read() == b"content"
        assert changed == []
    after = {path: path.stat() for path in [root, *root.rglob("*")]}
    for path, found in before.items():
        assert (found.st_mode, found.st_mtime_ns, found.st_size) == (
            after[path].st_mode, after[path].st_mtime_ns, after[path].st_size,
        )  # fmt: skip


def test_pipes_and_devices_are_not_opened(client: Client, root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert client.status(sftp.CMD_OPEN, b"pipe", sftp.SFTP_FLAG_READ, 0) == sftp.SFTP_PERMISSION_DENIED
    assert client.status(sftp.CMD_OPEN, b"sub", sftp.SFTP_FLAG_READ, 0) == sftp.SFTP_FAILURE


def test_links_out_are_followed_when_told_and_only_those_of_the_start(root: Path) -> None:
    (root / "out").symlink_to("../secret")
    (root / "one").symlink_to("../secret/key")
    (root / "in").symlink_to("sub")
    (root / "dead").symlink_to("/nowhere/at/all")
    doors = outward_links(root)
    secret = os.fsencode((root.parent / "secret").resolve())
    assert doors == {b"out": secret, b"one": secret + b"/key"}
    with served(Folder(root, doors=doors)) as (client, _):
        with client.open("out/key") as file:
            assert file.read() == b"secret"
        with client.open("one") as file:
            assert file.read() == b"secret"
        modes = {found.filename: found.st_mode or 0 for found in client.listdir_attr("/")}
        assert stat.S_ISDIR(modes["out"])
        assert stat.S_ISREG(modes["one"])
        assert stat.S_ISLNK(modes["in"])
        assert client.listdir("out") == ["key"]
        # A link that somebody else makes later, here, is not followed either.
        (root / "later").symlink_to(root.parent)
        assert client.status(sftp.CMD_STAT, b"later/secret/key") == sftp.SFTP_NO_SUCH_FILE
        # Behind a door, a link is put where another door leads to.
        client.remove("out/key")
        (root.parent / "secret" / "key").symlink_to("/etc/passwd")
        assert client.status(sftp.CMD_OPEN, b"one", sftp.SFTP_FLAG_READ, 0) == sftp.SFTP_NO_SUCH_FILE
        client.remove("one")
    assert not (root / "one").is_symlink(), "the link is removed, not what it leads to"
    assert (root.parent / "secret" / "key").is_symlink()


def test_while_doors_exist_no_link_is_made_or_moved_that_leads_out(root: Path) -> None:
    (root / "out").symlink_to("../secret")
    (root / "sub" / "up").symlink_to("../file")
    (root / "sub" / "deep").mkdir()
    (root / "sub" / "deep" / "up").symlink_to("../../file")
    denied = sftp.SFTP_PERMISSION_DENIED
    with served(Folder(root, doors=outward_links(root))) as (client, _):
        for target in (b"/etc", b"../secret", b"sub/../../secret", b"out/key", b"..", b"out"):
            assert client.status(sftp.CMD_SYMLINK, target, b"new") == denied
        for target, path in ((b"../file", b"out/x"), (b"/etc/passwd", b"out/x"), (b"../../secret", b"sub/x")):
            assert client.status(sftp.CMD_SYMLINK, target, path) == denied
        for old, new in ((b"sub/up", b"up"), (b"out", b"out2"), (b"sub/deep", b"deep"), (b"sub/up", b"out/up")):
            assert client.status(sftp.CMD_RENAME, old, new) == denied
            assert client.status(sftp.CMD_EXTENDED, b"posix-rename@openssh.com", old, new) == denied
        assert client.status(sftp.CMD_EXTENDED, b"hardlink@openssh.com", b"sub/up", b"up") == denied
        for target, path in ((b"../file", b"sub/new"), (b"nothing yet", b"new"), (b"key", b"out/new")):
            assert client.status(sftp.CMD_SYMLINK, target, path) == sftp.SFTP_OK
        assert client.status(sftp.CMD_RENAME, b"sub/up", b"sub/deeper") == sftp.SFTP_OK
        assert client.status(sftp.CMD_RENAME, b"file", b"sub/file") == sftp.SFTP_OK
    assert outward_links(root).keys() == {b"out"}
    with served(Folder(root)) as (client, _):
        assert client.status(sftp.CMD_SYMLINK, b"/usr/bin/python3", b"python") == sftp.SFTP_OK, "as `venv` makes them"


def test_a_request_that_is_cut_short_changes_nothing(client: Client, root: Path) -> None:
    handle = client.ask(sftp.CMD_OPEN, b"file", sftp.SFTP_FLAG_WRITE, 0)[1].get_binary()
    for kind, body in (
        (sftp.CMD_WRITE, struct.pack(">I", len(handle)) + handle + struct.pack(">QI", 0, 9999) + b"short"),
        (sftp.CMD_WRITE, struct.pack(">I", len(handle)) + handle),
        (sftp.CMD_SETSTAT, struct.pack(">I", 4) + b"file" + struct.pack(">I", 1)),
        (sftp.CMD_SETSTAT, struct.pack(">I", 4) + b"file" + struct.pack(">IH", 4, 0)),
        (sftp.CMD_FSETSTAT, struct.pack(">I", len(handle)) + handle + struct.pack(">I", 1)),
        (sftp.CMD_RENAME, struct.pack(">I", 4) + b"file" + struct.pack(">I", 3)),
        (sftp.CMD_OPEN, struct.pack(">I", 3) + b"new"),
    ):
        message = Message()
        message.add_bytes(struct.pack(">I", 7) + body)
        client._send_packet(kind, message)  # type: ignore[attr-defined]
        reply, data = client._read_packet()  # type: ignore[attr-defined]
        assert (reply, struct.unpack(">II", data[:8])) == (sftp.CMD_STATUS, (7, sftp.SFTP_BAD_MESSAGE))
    assert (root / "file").read_text() == "content"
    assert sorted(path.name for path in root.iterdir()) == ["file", "sub"]


def test_what_is_shared_itself_keeps_its_mode(root: Path) -> None:
    (root / "out").symlink_to("../secret")
    modes = [path.stat().st_mode for path in (root, root.parent / "secret")]
    with served(Folder(root, doors=outward_links(root))) as (client, _):
        for path in (b"", b"/", b".", b"out", b"/./out"):
            assert client.status(sftp.CMD_SETSTAT, path, 4, 0) == sftp.SFTP_FAILURE
        assert client.status(sftp.CMD_SETSTAT, b"sub", 4, 0o700) == sftp.SFTP_OK
        assert client.status(sftp.CMD_SETSTAT, b"/", 2, *OWNER) == sftp.SFTP_OK, "to the owner that it has"
    assert [path.stat().st_mode for path in (root, root.parent / "secret")] == modes


def test_listings_are_read_as_they_are_asked_for_and_few_are_open(
    client: Client, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmimage.access.sftp.OPEN_DIRECTORIES", 3)
    for number in range(300):
        (root / "sub" / str(number)).touch()
    before = len(list(Path("/proc/self/fd").iterdir()))
    handles = [client.ask(sftp.CMD_OPENDIR, b"sub")[1].get_binary() for _ in range(3)]
    assert client.status(sftp.CMD_OPENDIR, b"sub") == sftp.SFTP_FAILURE
    seen = 0
    while (answer := client.ask(sftp.CMD_READDIR, handles[0]))[0] == sftp.CMD_NAME:
        seen += answer[1].get_int()
    assert seen == 300
    for handle in handles:
        assert client.status(sftp.CMD_CLOSE, handle) == sftp.SFTP_OK
    assert client.status(sftp.CMD_OPENDIR, b"none") == sftp.SFTP_NO_SUCH_FILE
    assert client.status(sftp.CMD_OPENDIR, b"file") == sftp.SFTP_NO_SUCH_FILE
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_open_files_leave_this_process_some_descriptors(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (OWN_DESCRIPTORS + 2, OWN_DESCRIPTORS + 2))
    answers = [client.ask(sftp.CMD_OPEN, b"file", sftp.SFTP_FLAG_READ, 0)[0] for _ in range(3)]
    assert answers == [sftp.CMD_HANDLE, sftp.CMD_HANDLE, sftp.CMD_STATUS]


@pytest.mark.parametrize("how", ["removed", "renamed", "linked"])
def test_directory_is_a_path(root: Path, how: str) -> None:
    with served(folder := Folder(root)) as (client, _):
        kept = client.ask(sftp.CMD_OPEN, b"file", sftp.SFTP_FLAG_READ, 0)[1].get_binary()
        assert client.listdir("/")
        new = root.with_name("new")
        new.mkdir()
        (new / "page").write_text("2")
        if how == "removed":
            shutil.rmtree(root)
            assert not folder.is_there()
            assert client.status(sftp.CMD_OPENDIR, b"/") == sftp.SFTP_NO_SUCH_FILE
            assert client.status(sftp.CMD_STAT, b"file") == sftp.SFTP_NO_SUCH_FILE
        else:
            root.rename(root.with_name("old"))
        if how == "linked":
            root.symlink_to(new)
            assert not folder.is_there()
            assert client.status(sftp.CMD_OPENDIR, b"/") == sftp.SFTP_NO_SUCH_FILE, "links lead nowhere, here too"
            return
        new.rename(root)
        assert folder.is_there()
        assert client.listdir("/") == ["page"]
        with client.open("page", "r+") as file:
            file.write(b"3")
        assert (root / "page").read_text() == "3"
        assert client.ask(sftp.CMD_READ, kept, 0, 0, 99)[0] == sftp.CMD_DATA, "what was open before stays"
