"""The plain tar archives that appliances and boxes are: ustar, no paths, nothing of the host or the time in them.

The reader takes only what every importer reads in the same way, so that what is checked is what they take: regular
files in ustar, or in GNU's dialect for members of 8 GiB and more (what VirtualBox, VMware's ova-compose and ourselves
write). Refused are pax headers (vSphere does not read them), GNU's long names and sparse files, links, old members
without a type, names that stand twice, and anything behind the end.

Source: POSIX.1-2017, pax(1), "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format".
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
USTAR_LIMIT = 8 << 30
LARGEST_TEXT = 1 << 20
MOST_MEMBERS = 64
MOST_PADDING = 1 << 20
"""Bytes of zeros behind the end of an archive; GNU tar fills up to 10 KiB."""
CHUNK = 1 << 20

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s167s")
"""Name, mode, uid, gid, size, mtime, checksum, type, link, magic and version, owner, group, device numbers, rest."""
_CHECKSUM_AT, _CHECKSUM_END = 148, 156
_MAGICS = (b"ustar\x0000", b"ustar  \0")
_FILE = b"0"
_NAME = re.compile(rb"([A-Za-z0-9][A-Za-z0-9._-]*)\0*")
_OCTAL_SIZE = re.compile(rb"([0-7]{11})[\0 ]")
_OCTAL_CHECKSUM = re.compile(rb"([0-7]{6})[\0 ]{2}")


def member(name: str, size: int) -> bytes:
    """Return the tar header of a file."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT if size >= USTAR_LIMIT else tarfile.USTAR_FORMAT)


def append(archive: BinaryIO, name: str, data: bytes) -> None:
    """Write a whole member."""
    archive.write(member(name, len(data)) + data + bytes(-len(data) % BLOCK))


def finish(archive: BinaryIO) -> None:
    """Write what ends an archive."""
    archive.write(bytes(2 * BLOCK))
    archive.write(bytes(-archive.tell() % tarfile.RECORDSIZE))


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in an archive: where its bytes lie in it."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Archive:
    """An archive that is open, and its members by name, in their order."""

    file: BinaryIO
    members: Mapping[str, Member]

    def text(self, name: str) -> bytes:
        """Return a member that is a text.

        Raises:
            ValueError: It is too large for one.
        """
        size = self.members[name].size
        if size > LARGEST_TEXT:
            raise ValueError(f"{name} has {size} bytes, too many for a text")
        return self.head(name, size)

    def head(self, name: str, count: int = BLOCK) -> bytes:
        """Return the start of a member."""
        found = self.members[name]
        return _read(self.file, found.offset, min(count, found.size), name)

    def copy(self, name: str, out: BinaryIO | None = None) -> str:
        """Return the SHA-256 of a member, in hex; what is hashed is what is copied to `out`.

        Raises:
            ValueError: The archive became shorter.
        """
        found = self.members[name]
        digest, done = hashlib.sha256(), 0
        while done < found.size:
            data = _read(self.file, found.offset + done, min(CHUNK, found.size - done), name)
            digest.update(data)
            if out:
                out.write(data)
            done += len(data)
        return digest.hexdigest()


@contextlib.contextmanager
def opened_archive(path: Path, most_members: int = MOST_MEMBERS) -> Iterator[Archive]:
    """Open an archive.

    Args:
        most_members: Files that it may have.

    Raises:
        ValueError: It is not such an archive, with the reason.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError("it is compressed by gzip, and should be a plain tar archive")
        yield Archive(file, {found.name: found for found in _members(file, path.stat().st_size, most_members)})


def _members(file: BinaryIO, total: int, most_members: int) -> Iterator[Member]:
    """Yield the members, after a look at everything that is not in them."""
    if total < BLOCK:
        raise ValueError("it is no readable tar archive: it is too short for one")
    names = set[str]()
    at = 0
    while (block := _read(file, at, BLOCK, "its headers")) != bytes(BLOCK):
        found = _parsed(block, at)
        # Some importers write members to file systems that know no capitals.
        if found.name.lower() in names:
            raise ValueError(f"its member {found.name} stands in it twice")
        names.add(found.name.lower())
        if len(names) > most_members:
            raise ValueError(f"it has more than {most_members} members")
        end = found.offset + found.size
        at = end + -found.size % BLOCK
        if at > total:
            raise ValueError(f"it is cut short within {found.name}")
        if any(_read(file, end, at - end, found.name)):
            raise ValueError(f"its member {found.name} is followed by other bytes than zeros")
        yield found
    _check_end(file, at, total - at)


def _check_end(file: BinaryIO, at: int, rest: int) -> None:
    if rest < 2 * BLOCK or rest % BLOCK:
        raise ValueError("it is cut short: two blocks of zeros should end it")
    if rest > MOST_PADDING or any(_read(file, at, rest, "its end")):
        raise ValueError("it has something behind its end, which some importers would read")


def _parsed(block: bytes, at: int) -> Member:
    """Return the member that a header announces.

    Raises:
        ValueError: It is another header than importers read in the same way.
    """
    name_field, _, _, _, size, _, checksum, kind, link, magic, _, _, _, _, rest = _HEADER.unpack(block)
    counted = sum(block[:_CHECKSUM_AT]) + sum(block[_CHECKSUM_END:]) + 8 * ord(" ")
    told = _OCTAL_CHECKSUM.fullmatch(checksum)
    if not told or int(told[1], 8) != counted:
        raise ValueError(f"it is no readable tar archive: there is no header at byte {at}")
    shown = name_field.split(b"\0")[0].decode("utf-8", "replace")
    if kind in (b"x", b"g"):
        raise ValueError("it is a pax archive; importers read ustar")
    name = _NAME.fullmatch(name_field)
    if not name or kind != _FILE or any(link):
        raise ValueError(f"its member {shown} is not a plain file at the top")
    # Behind the device numbers stands a folder in ustar; in GNU's dialect more than one kind of thing.
    if magic not in _MAGICS or any(rest):
        raise ValueError(f"its member {shown} is not in ustar")
    return Member(name=name[1].decode(), offset=at + BLOCK, size=_size(size, shown))


def _size(field: bytes, name: str) -> int:
    """Return the size that a header tells: in octal, or as GNU writes what is too large for that."""
    octal = _OCTAL_SIZE.fullmatch(field)
    if octal:
        return int(octal[1], 8)
    size = int.from_bytes(field[1:], "big")
    if field[0] != 0x80 or not USTAR_LIMIT <= size < 1 << 63:  # noqa: PLR2004 - GNU's mark of a binary number
        raise ValueError(f"its member {name} has a size that is no number")
    return size


def _read(file: BinaryIO, at: int, count: int, what: str) -> bytes:
    file.seek(at)
    data = file.read(count)
    if len(data) < count:
        raise ValueError(f"it is cut short within {what}")
    return data
