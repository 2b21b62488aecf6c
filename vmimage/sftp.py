"""SFTP version 3 for one confined directory, as sshfs speaks it: the protocol, and what OpenSSH adds to it.

Paramiko's own `SFTPServer` is not used: it takes every name for UTF-8, offers none of OpenSSH's extensions but one, and
lists 16 names a packet. What is left of it when that is mended is `paramiko.Message`, which packs and unpacks here.
https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02 and `PROTOCOL` in OpenSSH's source.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from paramiko import sftp
from paramiko.message import Message
from paramiko.sftp_attr import SFTPAttributes

from vmimage.confined import Folder, failed

EXTENSIONS = {
    "posix-rename@openssh.com": "1",
    "statvfs@openssh.com": "2",
    "hardlink@openssh.com": "1",
    "fsync@openssh.com": "1",
}
OPEN_FLAGS = {
    sftp.SFTP_FLAG_APPEND: os.O_APPEND,
    sftp.SFTP_FLAG_CREATE: os.O_CREAT,
    sftp.SFTP_FLAG_TRUNC: os.O_TRUNC,
    sftp.SFTP_FLAG_EXCL: os.O_EXCL,
}
# sshfs turns a status back into an error number: FAILURE becomes EPERM, or after a look around EEXIST or ENOTEMPTY.
STATUS = {
    errno.ENOENT: sftp.SFTP_NO_SUCH_FILE,
    errno.ENOTDIR: sftp.SFTP_NO_SUCH_FILE,
    errno.ELOOP: sftp.SFTP_NO_SUCH_FILE,
    errno.EACCES: sftp.SFTP_PERMISSION_DENIED,
    errno.EROFS: sftp.SFTP_PERMISSION_DENIED,
    errno.EOPNOTSUPP: sftp.SFTP_OP_UNSUPPORTED,
}
LONGEST = 256 << 10
NAMES = 128
HANDLES = 4096
UNCHANGED = 0xFFFFFFFF


class Stream(Protocol):
    """What the service speaks through: a socket, or a channel of paramiko."""

    def recv(self, size: int, /) -> bytes:
        """Take what has come; nothing at the end."""

    def sendall(self, data: bytes, /) -> object:
        """Send all of it."""


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What a request says about a file; None where it says nothing."""

    size: int | None
    owner: tuple[int, int] | None
    mode: int | None
    times: tuple[int, int] | None


@dataclass(kw_only=True)
class Handle:
    """An open file, or what is left to tell of a directory."""

    path: bytes
    descriptor: int = -1
    append: bool = False
    entries: list[tuple[bytes, os.stat_result]] | None = None


class Service:
    """Answers the requests of one session, in the order in which they come.

    Args:
        owner: Whose all files are said to be (user and group of the other side). Nobody else can be made their owner.
        on_change: Told the path of each file that the other side changes.
    """

    def __init__(
        self,
        folder: Folder,
        stream: Stream,
        *,
        owner: tuple[int, int],
        on_change: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._stream = stream
        self._owner = owner
        self._changed = on_change
        self._handles: dict[bytes, Handle] = {}
        self._numbers = itertools.count()
        self._received = bytearray()
        self._requests: dict[int, Callable[[Message], tuple[int, bytes]]] = {
            sftp.CMD_OPEN: self._open,
            sftp.CMD_CLOSE: self._close,
            sftp.CMD_READ: self._read,
            sftp.CMD_WRITE: self._write,
            sftp.CMD_LSTAT: self._stat,
            sftp.CMD_STAT: self._stat,
            sftp.CMD_FSTAT: self._fstat,
            sftp.CMD_SETSTAT: self._setstat,
            sftp.CMD_FSETSTAT: self._fsetstat,
            sftp.CMD_OPENDIR: self._opendir,
            sftp.CMD_READDIR: self._readdir,
            sftp.CMD_REMOVE: self._remove,
            sftp.CMD_MKDIR: self._mkdir,
            sftp.CMD_RMDIR: self._rmdir,
            sftp.CMD_REALPATH: self._realpath,
            sftp.CMD_RENAME: lambda message: self._rename(message, replace=False),
            sftp.CMD_READLINK: self._readlink,
            sftp.CMD_SYMLINK: self._symlink,
            sftp.CMD_EXTENDED: self._extended,
        }

    def serve(self) -> None:
        """Answer until the other side ends the stream, or says what is not SFTP."""
        try:
            while packet := self._packet():
                kind, message = packet[0], Message(packet[1:])
                if kind == sftp.CMD_INIT:
                    said = b"".join(_string(text.encode()) for pair in EXTENSIONS.items() for text in pair)
                    self._send(sftp.CMD_VERSION, struct.pack(">I", 3) + said)
                    continue
                number = struct.pack(">I", message.get_int())
                kind, body = self._answer(kind, message)
                self._send(kind, number + body)
        except (OSError, EOFError):
            return  # the session is gone, and with it whoever could be told
        finally:
            for handle in self._handles.values():
                _end(handle)

    def _answer(self, kind: int, message: Message) -> tuple[int, bytes]:
        request = self._requests.get(kind)
        if not request:
            return _status(sftp.SFTP_OP_UNSUPPORTED, "unknown request")
        try:
            return request(message)
        except OSError as error:
            return _status(STATUS.get(error.errno or 0, sftp.SFTP_FAILURE), error.strerror or "")
        except (ValueError, OverflowError) as error:
            return _status(sftp.SFTP_BAD_MESSAGE, str(error))

    def _packet(self) -> bytes:
        """Wait for a packet; an empty one is the end."""
        while True:
            if len(self._received) >= 4:  # noqa: PLR2004 - bytes of the length
                (length,) = struct.unpack_from(">I", self._received)
                if not 0 < length <= LONGEST + 1024:
                    return b""
                if len(self._received) >= 4 + length:
                    packet = bytes(memoryview(self._received)[4 : 4 + length])
                    del self._received[: 4 + length]
                    return packet
            data = self._stream.recv(LONGEST)
            if not data:
                return b""
            self._received += data

    def _send(self, kind: int, body: bytes) -> None:
        self._stream.sendall(struct.pack(">IB", len(body) + 1, kind) + body)

    def _handle(self, message: Message) -> Handle:
        handle = self._handles.get(message.get_binary())
        if handle is None:
            raise failed(errno.EBADF)
        return handle

    def _file(self, message: Message) -> Handle:
        handle = self._handle(message)
        if handle.entries is not None:
            raise failed(errno.EISDIR)
        return handle

    def _keep(self, handle: Handle) -> tuple[int, bytes]:
        name = b"%d" % next(self._numbers)
        self._handles[name] = handle
        return sftp.CMD_HANDLE, _string(name)

    def _room(self) -> None:
        if len(self._handles) >= HANDLES:
            raise failed(errno.EMFILE)

    def _open(self, message: Message) -> tuple[int, bytes]:
        path, wanted = message.get_binary(), message.get_int()
        mode = _attributes(message).mode
        read, write = wanted & sftp.SFTP_FLAG_READ, wanted & sftp.SFTP_FLAG_WRITE
        flags = os.O_RDWR if read and write else os.O_WRONLY if write else os.O_RDONLY
        for flag, ours in OPEN_FLAGS.items():
            flags |= ours if wanted & flag else 0
        self._room()
        descriptor = self._folder.open(path, flags, 0o666 if mode is None else mode)
        if flags & (os.O_CREAT | os.O_TRUNC):
            self._changed(path)
        return self._keep(Handle(path=path, descriptor=descriptor, append=bool(flags & os.O_APPEND)))

    def _close(self, message: Message) -> tuple[int, bytes]:
        handle = self._handles.pop(message.get_binary(), None)
        if handle is None:
            raise failed(errno.EBADF)
        _end(handle)
        return _status(sftp.SFTP_OK)

    def _read(self, message: Message) -> tuple[int, bytes]:
        handle, offset, length = self._file(message), message.get_int64(), message.get_int()
        data = os.pread(handle.descriptor, min(length, LONGEST), offset)
        return (sftp.CMD_DATA, _string(data)) if data else _status(sftp.SFTP_EOF)

    def _write(self, message: Message) -> tuple[int, bytes]:
        handle, offset, data = self._file(message), message.get_int64(), memoryview(message.get_binary())
        while data:
            # With O_APPEND the offset would count on some systems.
            done = os.write(handle.descriptor, data) if handle.append else os.pwrite(handle.descriptor, data, offset)
            data, offset = data[done:], offset + done
        self._changed(handle.path)
        return _status(sftp.SFTP_OK)

    def _stat(self, message: Message) -> tuple[int, bytes]:
        # Links are the client's to follow, so STAT is LSTAT.
        return sftp.CMD_ATTRS, self._pack(self._folder.lstat(message.get_binary()))

    def _fstat(self, message: Message) -> tuple[int, bytes]:
        return sftp.CMD_ATTRS, self._pack(os.fstat(self._file(message).descriptor))

    def _setstat(self, message: Message) -> tuple[int, bytes]:
        path, wanted = message.get_binary(), _attributes(message)
        self._require_owner(wanted)
        if wanted.size is not None:
            descriptor = self._folder.open(path, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, wanted.size)
            finally:
                os.close(descriptor)
        if wanted.mode is not None:
            self._folder.chmod(path, wanted.mode)
        if wanted.times is not None:
            self._folder.utime(path, wanted.times)
        if (wanted.size, wanted.mode, wanted.times) != (None, None, None):
            self._changed(path)
        return _status(sftp.SFTP_OK)

    def _fsetstat(self, message: Message) -> tuple[int, bytes]:
        handle, wanted = self._file(message), _attributes(message)
        self._require_owner(wanted)
        if self._folder.read_only:
            raise failed(errno.EROFS)
        if wanted.size is not None:
            os.ftruncate(handle.descriptor, wanted.size)
        if wanted.mode is not None:
            os.fchmod(handle.descriptor, wanted.mode & 0o1777)
        if wanted.times is not None:
            os.utime(handle.descriptor, wanted.times)
        self._changed(handle.path)
        return _status(sftp.SFTP_OK)

    def _require_owner(self, wanted: Attributes) -> None:
        """Files are the owner's already; giving them to another is refused, as a user without privileges is."""
        for asked, ours in zip(wanted.owner or (), self._owner, strict=False):
            if asked not in (ours, UNCHANGED):
                raise failed(errno.EPERM)

    def _opendir(self, message: Message) -> tuple[int, bytes]:
        path = message.get_binary()
        self._room()
        return self._keep(Handle(path=path, entries=self._folder.entries(path)))

    def _readdir(self, message: Message) -> tuple[int, bytes]:
        handle = self._handle(message)
        if handle.entries is None:
            raise failed(errno.ENOTDIR)
        told, handle.entries = handle.entries[:NAMES], handle.entries[NAMES:]
        if not told:
            return _status(sftp.SFTP_EOF)
        names = (_string(name) + _string(name) + self._pack(found) for name, found in told)
        return sftp.CMD_NAME, struct.pack(">I", len(told)) + b"".join(names)

    def _remove(self, message: Message) -> tuple[int, bytes]:
        return self._done(message.get_binary(), self._folder.remove)

    def _rmdir(self, message: Message) -> tuple[int, bytes]:
        return self._done(message.get_binary(), self._folder.rmdir)

    def _mkdir(self, message: Message) -> tuple[int, bytes]:
        path, mode = message.get_binary(), _attributes(message).mode
        return self._done(path, lambda path: self._folder.mkdir(path, 0o777 if mode is None else mode))

    def _done(self, path: bytes, change: Callable[[bytes], None]) -> tuple[int, bytes]:
        change(path)
        self._changed(path)
        return _status(sftp.SFTP_OK)

    def _realpath(self, message: Message) -> tuple[int, bytes]:
        path = os.path.normpath(b"/" + message.get_binary()).replace(b"//", b"/")
        return sftp.CMD_NAME, struct.pack(">I", 1) + _string(path) * 2 + struct.pack(">I", 0)

    def _readlink(self, message: Message) -> tuple[int, bytes]:
        target = self._folder.readlink(message.get_binary())
        return sftp.CMD_NAME, struct.pack(">I", 1) + _string(target) * 2 + struct.pack(">I", 0)

    def _symlink(self, message: Message) -> tuple[int, bytes]:
        # OpenSSH has them the wrong way round, and so has everyone since.
        target, path = message.get_binary(), message.get_binary()
        return self._done(path, lambda path: self._folder.symlink(target, path))

    def _rename(self, message: Message, *, replace: bool) -> tuple[int, bytes]:
        old, new = message.get_binary(), message.get_binary()
        self._folder.rename(old, new, replace=replace)
        self._changed(old)
        self._changed(new)
        return _status(sftp.SFTP_OK)

    def _extended(self, message: Message) -> tuple[int, bytes]:
        name = message.get_binary()
        if name == b"posix-rename@openssh.com":
            return self._rename(message, replace=True)
        if name == b"hardlink@openssh.com":
            old, new = message.get_binary(), message.get_binary()
            return self._done(new, lambda new: self._folder.link(old, new))
        if name == b"fsync@openssh.com":
            os.fsync(self._file(message).descriptor)
            return _status(sftp.SFTP_OK)
        if name == b"statvfs@openssh.com":
            found = self._folder.statvfs(message.get_binary())
            # The fields come in the order of the protocol, but for the identity of the file system.
            numbers = (*found[:8], 0, int(self._folder.read_only), found.f_namemax)
            return sftp.CMD_EXTENDED_REPLY, struct.pack(">11Q", *numbers)
        return _status(sftp.SFTP_OP_UNSUPPORTED, "unknown extension")

    def _pack(self, found: os.stat_result) -> bytes:
        flags = SFTPAttributes.FLAG_SIZE | SFTPAttributes.FLAG_UIDGID
        flags |= SFTPAttributes.FLAG_PERMISSIONS | SFTPAttributes.FLAG_AMTIME
        times = (int(time) & 0xFFFFFFFF for time in (found.st_atime, found.st_mtime))
        return struct.pack(">IQIIIII", flags, found.st_size, *self._owner, found.st_mode, *times)


def _end(handle: Handle) -> None:
    if handle.descriptor >= 0:
        os.close(handle.descriptor)


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _status(code: int, text: str = "") -> tuple[int, bytes]:
    return sftp.CMD_STATUS, struct.pack(">I", code) + _string(text.encode()) + _string(b"")


def _attributes(message: Message) -> Attributes:
    flags = message.get_int()
    return Attributes(
        size=message.get_int64() if flags & SFTPAttributes.FLAG_SIZE else None,
        owner=(message.get_int(), message.get_int()) if flags & SFTPAttributes.FLAG_UIDGID else None,
        mode=message.get_int() if flags & SFTPAttributes.FLAG_PERMISSIONS else None,
        times=(message.get_int(), message.get_int()) if flags & SFTPAttributes.FLAG_AMTIME else None,
    )
