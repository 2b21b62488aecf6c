"""The confined SFTP service, asked by paramiko's own client and by hostile hands."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paramiko import sftp
from paramiko.message import Message

from vmimage.access.confined import Folder, outward_links
from vmimage.access.sftp import Service

OWNER = (1000, 1001)


class Client(paramiko.SFTPClient):
    """Also what paramiko's client does not offer."""

    def _log(self, *_: object) -> None:
        """Say nothing: it would ask the socket for the name of a channel."""

    def ask(self, kind: int, *parts: bytes | int) -> tuple[int, Message]:
        """Send a request as it is; returns the kind of the reply, and the rest of it."""
        request = struct.pack(">I", 7) + b"".join(
            struct.pack(">I", part) if isinstance(part, int) else struct.pack(">I", len(part)) + part for part in parts
        )
        message = Message()
        message.add_bytes(request)
        self._send_packet(kind, message)  # type: ignore[attr-defined]
        reply, data = self._read_packet()  # type: ignore[attr-defined]
        return reply, Message(data[4:])

    def status(self, kind: int, *parts: bytes | int) -> int:
        """Send a request that is answered by a status."""
        reply, message = self.ask(kind, *parts)
        assert reply == sftp.CMD_STATUS
        return message.get_int()


@contextlib.contextmanager
def served(folder: Folder) -> Iterator[tuple[Client, list[bytes]]]:
    """Serve a folder; yields a client, and the paths that were changed by it."""
    ours, theirs = socket.socketpair()
    changed: list[bytes] = []
    service = Service(folder, ours, owner=OWNER, on_change=changed.append)
    thread = threading.Thread(target=service.serve)
    thread.start()
    with contextlib.closing(folder), ours, theirs:
        try:
            yield Client(theirs), changed  # type: ignore[arg-type]
        finally:
            theirs.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=10)
            assert not thread.is_alive()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A shared directory, and beside it what nobody may see."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "file").write_text("content")
    return root


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    with served(Folder(root)) as (client, _):
        yield client


def test_reads_writes_and_lists(client: Client, root: Path) -> None:
    with client.open("sub/new", "w") as file:
        file.write(b"x" * 100_000)
    assert (root / "sub" / "new").read_bytes() == b"x" * 100_000
    with client.open("/sub/new", "r+") as file:
        file.seek(99_990)
        file.write(b"y" * 20)
        assert file.stat().st_size == 100_010
    with client.open("sub/new") as file:
        assert file.read() == b"x" * 99_990 + b"y" * 20
    assert sorted(client.listdir("/")) == ["file", "sub"]
    found = client.stat("file")
    assert (found.st_size, found.st_uid, found.st_gid) == (7, *OWNER)
    assert client.normalize(".") == "/"
    assert client.normalize("/../sub/./x") == "/sub/x"


def test_many_files_and_any_name(client: Client, root: Path) -> None:
    names = [f"{number} ä\n" for number in range(300)]
    for name in names:
        (root / "sub" / name).touch()
    assert sorted(client.listdir("sub")) == sorted(names)
    odd = b"\xff\xfe not utf-8"
    with client.open(odd, "w") as file:
        file.write(b"1")
    assert (os.fsencode(root) + b"/" + odd) in [os.fsencode(path) for path in root.iterdir()]
    client.remove(odd)


def test_appends_at_the_end_that_the_file_has_now(client: Client, root: Path) -> None:
    with client.open("file", "a") as file:
        (root / "file").write_text("content, longer")
        file.write(b"+")
    assert (root / "file").read_text() == "content, longer+"


def test_exclusive(client: Client) -> None:
    with pytest.raises(OSError, match="File exists"):
        client.open("file", "x")


def test_attributes(client: Client, root: Path) -> None:
    client.truncate("file", 3)
    client.utime("file", (1, 2))
    client.chmod("file", 0o4600)
    found = (root / "file").stat()
    assert (found.st_size, found.st_atime, found.st_mtime, stat.S_IMODE(found.st_mode)) == (3, 1, 2, 0o600)
    client.mkdir("made", 0o2700)
    assert stat.S_IMODE((root / "made").stat().st_mode) == 0o700


def test_an_unreadable_file_can_be_made_readable(client: Client, root: Path) -> None:
    (root / "file").chmod(0)
    client.chmod("file", 0o644)
    assert stat.S_IMODE((root / "file").stat().st_mode) == 0o644


def test_all_belongs_to_one_owner(client: Client) -> None:
    client.chown("file", *OWNER)
    with pytest.raises(OSError, match="Operation not permitted"):
        client.chown("file", 0, 0)
    with client.open("file", "r+") as file, pytest.raises(OSError, match="Operation not permitted"):
        file.chown(0, OWNER[1])


def test_renames_over_a_file_only_when_asked(client: Client, root: Path) -> None:
    (root / "new").write_text("new")
    with pytest.raises(OSError, match="File exists"):
        client.rename("new", "file")
    client.posix_rename("new", "file")
    assert (root / "file").read_text() == "new"
    client.rename("file", "sub/file")
    assert (root / "sub" / "file").read_text() == "new"


def test_links(client: Client, root: Path) -> None:
    client.symlink("../anywhere", "link")
    assert client.readlink("link") == "../anywhere"
    assert stat.S_ISLNK(client.lstat("link").st_mode or 0)
    assert client.status(sftp.CMD_EXTENDED, b"hardlink@openssh.com", b"/file", b"/sub/hard") == sftp.SFTP_OK
    assert (root / "sub" / "hard").samefile(root / "file")
    client.remove("link")
    assert sorted(path.name for path in root.iterdir()) == ["file", "sub"]


def test_what_openssh_added(client: Client, root: Path) -> None:
    reply, message = client.ask(sftp.CMD_EXTENDED, b"statvfs@openssh.com", b"/")
    assert reply == sftp.CMD_EXTENDED_REPLY
    numbers = struct.unpack(">11Q", message.get_remainder())
    found = os.statvfs(root)
    assert (numbers[1], numbers[2], numbers[10]) == (found.f_frsize, found.f_blocks, found.f_namemax)
    reply, message = client.ask(sftp.CMD_OPEN, b"file", sftp.SFTP_FLAG_WRITE, 0)
    handle = message.get_binary()
    assert client.status(sftp.CMD_EXTENDED, b"fsync@openssh.com", handle) == sftp.SFTP_OK
    assert client.status(sftp.CMD_EXTENDED, b"no@example.com", b"") == sftp.SFTP_OP_UNSUPPORTED


def test_errors_have_the_status_that_sshfs_understands(client: Client, root: Path) -> None:
    (root / "sub" / "inner").touch()
    assert client.status(sftp.CMD_REMOVE, b"none") == sftp.SFTP_NO_SUCH_FILE
    assert client.status(sftp.CMD_REMOVE, b"file/none") == sftp.SFTP_NO_SUCH_FILE
    assert client.status(sftp.CMD_RMDIR, b"sub") == sftp.SFTP_FAILURE
    assert client.status(sftp.CMD_MKDIR, b"sub", 0) == sftp.SFTP_FAILURE
    assert client.status(sftp.CMD_READ, b"no handle", 0, 0, 1) == sftp.SFTP_FAILURE
    assert client.status(sftp.CMD_REMOVE, b"n" * 300) == sftp.SFTP_FAILURE
    assert client.status(99) == sftp.SFTP_OP_UNSUPPORTED
    assert client.status(sftp.CMD_REMOVE, b"a\0b") == sftp.SFTP_FAILURE


def test_a_stream_that_is_no_sftp_ends_the_service(root: Path) -> None:
    with served(Folder(root)) as (client, _):
        client.sock.sendall(b"\xff" * 100)


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
        for _ in range(2000):
            with contextlib.suppress(OSError):
                found = client.lstat("sub/file")
                seen.add(found.st_size)
            with contextlib.suppress(OSError), client.open("sub/file") as file:
                seen.add(file.read())  # type: ignore[arg-type]
        stop.set()
        swapping.join()
    assert seen == {6, b"inside"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        client.symlink(str(root.parent), "later")
        assert client.status(sftp.CMD_STAT, b"later/secret/key") == sftp.SFTP_NO_SUCH_FILE
        # Behind a door, a link is put where another door leads to.
        client.remove("out/key")
        client.symlink("/etc/passwd", "out/key")
        assert client.status(sftp.CMD_OPEN, b"one", sftp.SFTP_FLAG_READ, 0) == sftp.SFTP_NO_SUCH_FILE
        client.remove("one")
    assert not (root / "one").is_symlink(), "the link is removed, not what it leads to"
    assert (root.parent / "secret" / "key").is_symlink()


def test_changes_are_reported_but_not_a_touch(root: Path) -> None:
    with served(Folder(root)) as (client, changed):
        before = (root / "file").stat()
        client.chown("file", *OWNER)
        client.open("file", "a").close()
        client.listdir("sub")
        after = (root / "file").stat()
        # What makes events in the guest does nothing to a file here.
        assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
        assert set(changed) <= {b"file"}
        changed.clear()
        client.truncate("file", 1)
        client.mkdir("new")
        client.posix_rename("new", "newer")
        assert changed == [b"file", b"new", b"new", b"newer"]


def test_errno_of_a_folder(root: Path) -> None:
    with (
        contextlib.closing(Folder(root, read_only=True)) as folder,
        pytest.raises(OSError, match="Read-only") as caught,
    ):
        folder.remove(b"file")
    assert caught.value.errno == errno.EROFS
