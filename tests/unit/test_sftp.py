"""The SFTP service, asked by paramiko's own client."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from pathlib import Path

import pytest
from paramiko import sftp

from tests.sftp_client import OWNER, Client, served
from vmimage.access.confined import Folder


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
