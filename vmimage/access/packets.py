"""The parts of packets of SFTP version 3, as bytes."""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass

from paramiko import sftp
from paramiko.message import Message
from paramiko.sftp_attr import SFTPAttributes

# sshfs turns a status back into an error number: FAILURE becomes EPERM, or after a look around EEXIST or ENOTEMPTY.
STATUS = {
    errno.ENOENT: sftp.SFTP_NO_SUCH_FILE,
    errno.ENOTDIR: sftp.SFTP_NO_SUCH_FILE,
    errno.ELOOP: sftp.SFTP_NO_SUCH_FILE,
    errno.EACCES: sftp.SFTP_PERMISSION_DENIED,
    errno.EROFS: sftp.SFTP_PERMISSION_DENIED,
    errno.EOPNOTSUPP: sftp.SFTP_OP_UNSUPPORTED,
}
OPEN_FLAGS = {
    sftp.SFTP_FLAG_APPEND: os.O_APPEND,
    sftp.SFTP_FLAG_CREATE: os.O_CREAT,
    sftp.SFTP_FLAG_TRUNC: os.O_TRUNC,
    sftp.SFTP_FLAG_EXCL: os.O_EXCL,
}

Reply = tuple[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What a request says about a file; None where it says nothing."""

    size: int | None
    owner: tuple[int, int] | None
    mode: int | None
    times: tuple[int, int] | None


class Request(Message):
    """A packet of the other side. Paramiko's own class reads zeros behind its end."""

    def get_bytes(self, n: int) -> bytes:
        """Take the next bytes.

        Raises:
            ValueError: There are not as many.
        """
        data = self.packet.read(n)
        if len(data) < n:
            raise ValueError("the request is cut short")
        return data


def read_attributes(message: Message) -> Attributes:
    """Take the attributes out of a request."""
    flags = message.get_int()
    return Attributes(
        size=message.get_int64() if flags & SFTPAttributes.FLAG_SIZE else None,
        owner=(message.get_int(), message.get_int()) if flags & SFTPAttributes.FLAG_UIDGID else None,
        mode=message.get_int() if flags & SFTPAttributes.FLAG_PERMISSIONS else None,
        times=(message.get_int(), message.get_int()) if flags & SFTPAttributes.FLAG_AMTIME else None,
    )


def read_open_flags(message: Message) -> int:
    """Take the flags of OPEN out of a request, as those of open(2)."""
    wanted = message.get_int()
    read, write = wanted & sftp.SFTP_FLAG_READ, wanted & sftp.SFTP_FLAG_WRITE
    flags = os.O_RDWR if read and write else os.O_WRONLY if write else os.O_RDONLY
    for theirs, ours in OPEN_FLAGS.items():
        flags |= ours if wanted & theirs else 0
    return flags


def string(data: bytes) -> bytes:
    """Pack a string: its length before it."""
    return struct.pack(">I", len(data)) + data


def attributes(found: os.stat_result, owner: tuple[int, int]) -> bytes:
    """Pack what is known of a file, whose owner is somebody else.

    Whoever may write to it here, in the guest only its owner may: others there are containers.
    """
    flags = SFTPAttributes.FLAG_SIZE | SFTPAttributes.FLAG_UIDGID
    flags |= SFTPAttributes.FLAG_PERMISSIONS | SFTPAttributes.FLAG_AMTIME
    times = (int(time) & 0xFFFFFFFF for time in (found.st_atime, found.st_mtime))
    return struct.pack(">IQIIIII", flags, found.st_size, *owner, found.st_mode & ~stat.S_IWOTH, *times)


def status(code: int, text: str = "") -> Reply:
    """Make the reply that says how a request ended."""
    return sftp.CMD_STATUS, struct.pack(">I", code) + string(text.encode()) + string(b"")


def failure(error: OSError) -> Reply:
    """Make the reply for an error of this system."""
    return status(STATUS.get(error.errno or 0, sftp.SFTP_FAILURE), error.strerror or "")


def name_only(name: bytes) -> Reply:
    """Make the reply that is one name, without attributes."""
    return sftp.CMD_NAME, struct.pack(">I", 1) + string(name) * 2 + struct.pack(">I", 0)
