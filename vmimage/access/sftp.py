"""SFTP version 3 for one confined directory, as sshfs speaks it: the protocol, and what OpenSSH adds to it.

Paramiko's own `SFTPServer` is not used: it takes every name for UTF-8, offers none of OpenSSH's extensions but one, and
lists 16 names a packet. What is left of it when that is mended is `paramiko.Message`, which unpacks here.
https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02 and `PROTOCOL` in OpenSSH's source.

Nor is OpenSSH's `sftp-server` in bubblewrap, which was tried. A bind mount holds the directory that was there at the
start, so one that is removed and made anew stays gone for the machine. The server needs /usr and /etc/passwd in its
root, which links of a guest reach there; it ends where the user has no line in that file; and hosts that allow no user
namespaces could share nothing.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

from paramiko import sftp

from vmimage.access.confined import MODE, Folder, failed
from vmimage.access.packets import (
    Attributes,
    Reply,
    Request,
    attributes,
    failure,
    name_only,
    read_attributes,
    read_open_flags,
    status,
    string,
)
from vmimage.vm.limits import NAMES, OPEN_DIRECTORIES, OPEN_FILES, OWN_DESCRIPTORS, READ_BYTES, REQUEST_BYTES

EXTENSIONS = {
    "posix-rename@openssh.com": "1",
    "statvfs@openssh.com": "2",
    "hardlink@openssh.com": "1",
    "fsync@openssh.com": "1",
}
UNCHANGED = 0xFFFFFFFF


class Stream(Protocol):
    """What the service speaks through: a socket, or a channel of paramiko."""

    def recv(self, size: int, /) -> bytes:
        """Return the bytes that have arrived; no bytes mean the end."""

    def sendall(self, data: bytes, /) -> object:
        """Send all of it."""


@dataclass(kw_only=True)
class Handle:
    """An open file, or a directory that is being listed."""

    path: bytes
    descriptor: int = -1
    append: bool = False
    entries: Generator[tuple[bytes, os.stat_result]] | None = None


class Service:
    """Answers the requests of one session, in the order in which they come.

    Args:
        owner: User and group of the client, which all files appear to belong to. The client can set no other owner.
        on_change: Called with the path of each file that the client changes.
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
        self._requests: dict[int, Callable[[Request], Reply]] = {
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
                kind, message = packet[0], Request(packet[5:])
                if kind == sftp.CMD_INIT:
                    said = b"".join(string(text.encode()) for pair in EXTENSIONS.items() for text in pair)
                    self._send(sftp.CMD_VERSION, struct.pack(">I", 3) + said)
                    continue
                number = packet[1:5].ljust(4, b"\0")
                kind, body = self._answer(kind, message)
                self._send(kind, number + body)
        except (OSError, EOFError):
            return  # the session is gone, and with it whoever could be told
        finally:
            for handle in self._handles.values():
                _end(handle)

    def _answer(self, kind: int, message: Request) -> Reply:
        request = self._requests.get(kind)
        if not request:
            return status(sftp.SFTP_OP_UNSUPPORTED, "unknown request")
        try:
            return request(message)
        except OSError as error:
            return failure(error)
        except (ValueError, OverflowError) as error:
            return status(sftp.SFTP_BAD_MESSAGE, str(error))

    def _packet(self) -> bytes:
        """Wait for a packet; an empty one is the end."""
        while True:
            if len(self._received) >= 4:  # noqa: PLR2004 - bytes of the length
                (length,) = struct.unpack_from(">I", self._received)
                if not 0 < length <= REQUEST_BYTES:
                    return b""
                if len(self._received) >= 4 + length:
                    packet = bytes(memoryview(self._received)[4 : 4 + length])
                    del self._received[: 4 + length]
                    return packet
            data = self._stream.recv(READ_BYTES)
            if not data:
                return b""
            self._received += data

    def _send(self, kind: int, body: bytes) -> None:
        self._stream.sendall(struct.pack(">IB", len(body) + 1, kind) + body)

    def _handle(self, message: Request) -> Handle:
        handle = self._handles.get(message.get_binary())
        if handle is None:
            raise failed(errno.EBADF)
        return handle

    def _file(self, message: Request) -> Handle:
        handle = self._handle(message)
        if handle.entries is not None:
            raise failed(errno.EISDIR)
        return handle

    def _keep(self, handle: Handle) -> Reply:
        name = b"%d" % next(self._numbers)
        self._handles[name] = handle
        return sftp.CMD_HANDLE, string(name)

    def _room(self) -> None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self._handles) >= min(OPEN_FILES, descriptors - OWN_DESCRIPTORS):
            raise failed(errno.EMFILE)

    def _open(self, message: Request) -> Reply:
        path, flags = message.get_binary(), read_open_flags(message)
        mode = read_attributes(message).mode
        self._room()
        descriptor = self._folder.open(path, flags, 0o666 if mode is None else mode)
        if flags & (os.O_CREAT | os.O_TRUNC):
            self._changed(path)
        return self._keep(Handle(path=path, descriptor=descriptor, append=bool(flags & os.O_APPEND)))

    def _close(self, message: Request) -> Reply:
        handle = self._handles.pop(message.get_binary(), None)
        if handle is None:
            raise failed(errno.EBADF)
        _end(handle)
        return status(sftp.SFTP_OK)

    def _read(self, message: Request) -> Reply:
        handle, offset, length = self._file(message), message.get_int64(), message.get_int()
        data = os.pread(handle.descriptor, min(length, READ_BYTES), offset)
        return (sftp.CMD_DATA, string(data)) if data else status(sftp.SFTP_EOF)

    def _write(self, message: Request) -> Reply:
        handle, offset, data = self._file(message), message.get_int64(), memoryview(message.get_binary())
        while data:
            # With O_APPEND the offset would count on some systems.
            done = os.write(handle.descriptor, data) if handle.append else os.pwrite(handle.descriptor, data, offset)
            data, offset = data[done:], offset + done
        self._changed(handle.path)
        return status(sftp.SFTP_OK)

    def _stat(self, message: Request) -> Reply:
        # Links are the client's to follow, so STAT is LSTAT.
        return sftp.CMD_ATTRS, attributes(self._folder.lstat(message.get_binary()), self._owner)

    def _fstat(self, message: Request) -> Reply:
        return sftp.CMD_ATTRS, attributes(os.fstat(self._file(message).descriptor), self._owner)

    def _setstat(self, message: Request) -> Reply:
        path, wanted = message.get_binary(), read_attributes(message)
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
        return self._set(path, wanted)

    def _fsetstat(self, message: Request) -> Reply:
        handle, wanted = self._file(message), read_attributes(message)
        self._require_owner(wanted)
        self._folder.require_writable()
        if wanted.size is not None:
            os.ftruncate(handle.descriptor, wanted.size)
        if wanted.mode is not None:
            self._folder.require_below(handle.path)
            os.fchmod(handle.descriptor, wanted.mode & MODE)
        if wanted.times is not None:
            os.utime(handle.descriptor, wanted.times)
        return self._set(handle.path, wanted)

    def _set(self, path: bytes, wanted: Attributes) -> Reply:
        # To be given to the owner that it has does nothing to a file: vmimage.access.notify makes use of that.
        if (wanted.size, wanted.mode, wanted.times) != (None, None, None):
            self._changed(path)
        return status(sftp.SFTP_OK)

    def _require_owner(self, wanted: Attributes) -> None:
        """Files are the owner's already; giving them to another is refused, as a user without privileges is."""
        for asked, ours in zip(wanted.owner or (), self._owner, strict=False):
            if asked not in (ours, UNCHANGED):
                raise failed(errno.EPERM)

    def _opendir(self, message: Request) -> Reply:
        path = message.get_binary()
        self._room()
        if sum(handle.entries is not None for handle in self._handles.values()) >= OPEN_DIRECTORIES:
            raise failed(errno.EMFILE)
        return self._keep(Handle(path=path, entries=self._folder.entries(path)))

    def _readdir(self, message: Request) -> Reply:
        handle = self._handle(message)
        if handle.entries is None:
            raise failed(errno.ENOTDIR)
        told = list(itertools.islice(handle.entries, NAMES))
        if not told:
            return status(sftp.SFTP_EOF)
        names = (string(name) + string(name) + attributes(found, self._owner) for name, found in told)
        return sftp.CMD_NAME, struct.pack(">I", len(told)) + b"".join(names)

    def _remove(self, message: Request) -> Reply:
        return self._done(message.get_binary(), self._folder.remove)

    def _rmdir(self, message: Request) -> Reply:
        return self._done(message.get_binary(), self._folder.rmdir)

    def _mkdir(self, message: Request) -> Reply:
        path, mode = message.get_binary(), read_attributes(message).mode
        return self._done(path, lambda path: self._folder.mkdir(path, 0o777 if mode is None else mode))

    def _done(self, path: bytes, change: Callable[[bytes], None]) -> Reply:
        change(path)
        self._changed(path)
        return status(sftp.SFTP_OK)

    def _realpath(self, message: Request) -> Reply:
        return name_only(b"/" + os.path.normpath(b"/" + message.get_binary()).lstrip(b"/"))

    def _readlink(self, message: Request) -> Reply:
        return name_only(self._folder.readlink(message.get_binary()))

    def _symlink(self, message: Request) -> Reply:
        # OpenSSH has them the wrong way round, and so has everyone since.
        target, path = message.get_binary(), message.get_binary()
        return self._done(path, lambda path: self._folder.symlink(target, path))

    def _rename(self, message: Request, *, replace: bool) -> Reply:
        old, new = message.get_binary(), message.get_binary()
        self._folder.rename(old, new, replace=replace)
        self._changed(old)
        self._changed(new)
        return status(sftp.SFTP_OK)

    def _extended(self, message: Request) -> Reply:
        name = message.get_binary()
        if name == b"posix-rename@openssh.com":
            return self._rename(message, replace=True)
        if name == b"hardlink@openssh.com":
            old, new = message.get_binary(), message.get_binary()
            return self._done(new, lambda new: self._folder.link(old, new))
        if name == b"fsync@openssh.com":
            os.fsync(self._file(message).descriptor)
            return status(sftp.SFTP_OK)
        if name == b"statvfs@openssh.com":
            found = self._folder.statvfs(message.get_binary())
            # The fields come in the order of the protocol, but for the identity of the file system.
            numbers = (*found[:8], 0, int(self._folder.read_only), found.f_namemax)
            return sftp.CMD_EXTENDED_REPLY, struct.pack(">11Q", *numbers)
        return status(sftp.SFTP_OP_UNSUPPORTED, "unknown extension")


def _end(handle: Handle) -> None:
    if handle.entries is not None:
        handle.entries.close()
    if handle.descriptor >= 0:
        os.close(handle.descriptor)
