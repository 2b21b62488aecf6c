"""Members of archives that are not verified yet: sizes are bounded before anything is unpacked."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from vmimage.util.console import human_bytes
from vmimage.util.location import UnavailableError

CHUNK = 64 << 10
MOST_INDEX_BYTES = 16 << 20
"""Of a header of a tar archive, or the directory of a zip archive; both are read into memory."""
MOST_MEMBERS = 100_000
MOST_MEMORY = 256 << 20
"""That the decompressor of an xz file may take."""

Check = Callable[[], None]


_Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor


class Bounded:
    """A file of which nobody reads a large piece at once; tarfile and zipfile take sizes from what they read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Read some bytes; all that are left when the size is negative, if they are few."""
        data = self._file.read(size if 0 <= size <= MOST_INDEX_BYTES else MOST_INDEX_BYTES + 1)
        if len(data) > MOST_INDEX_BYTES:
            raise UnavailableError(f"the archive has a header of more than {human_bytes(MOST_INDEX_BYTES)}")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def extract_member(archive: Path, member: str, to: Path, *, most_bytes: int, check: Check = lambda: None) -> None:
    """Write one regular file of a zip or tar archive to `to`; no other name of the archive is ever used.

    Args:
        most_bytes: Of the member, and of the archive when it is decompressed.
        check: Is called now and then, to raise what is to end this.

    Raises:
        UnavailableError: It is no archive, or has no such file, or one of absurd size.
    """
    # What these libraries raise for bytes that somebody made up is no closed list (OverflowError, struct.error, …).
    try:
        if zipfile.is_zipfile(archive):
            with archive.open("rb") as file:
                _extract_zipped(cast(IO[bytes], Bounded(file)), member, to, most_bytes, check)
            return
        plain = to.with_name(f"{to.name}.tar")
        try:
            with _decompressed(archive, plain, most_bytes, check).open("rb") as file:
                _extract_tarred(cast(IO[bytes], Bounded(file)), member, to, most_bytes, check)
        finally:
            plain.unlink(missing_ok=True)
    except (UnavailableError, OSError) as error:
        if isinstance(error, UnavailableError) or error.errno is not None:  # of the disk, not of the archive
            raise
        raise UnavailableError(f"not a readable archive: {error}") from error
    except Exception as error:
        raise UnavailableError(f"not a readable archive: {error or type(error).__name__}") from error


def extract_path(
    archive: Path, members: Sequence[str], to: Path, *, most_bytes: int, check: Check = lambda: None
) -> None:
    """Write the file to `to` that members lead to, each in the archive that the one before gave.

    Args:
        most_bytes: Of each member, and of each archive when it is decompressed.
        check: Is called now and then, to raise what is to end this.

    Raises:
        UnavailableError: One of them is no archive, or has no such file, or one of absurd size.
    """
    inner = [to.with_name(f"{to.name}.{depth}") for depth in range(len(members) - 1)]
    try:
        for member, from_, into in zip(members, [archive, *inner], [*inner, to], strict=True):
            extract_member(from_, member, into, most_bytes=most_bytes, check=check)
    finally:
        for path in inner:
            path.unlink(missing_ok=True)


def _extract_zipped(file: IO[bytes], member: str, to: Path, most_bytes: int, check: Check) -> None:
    with zipfile.ZipFile(file) as package:
        try:
            info = package.getinfo(member)
        except KeyError:
            raise UnavailableError(f"the archive has no {member}") from None
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
            raise UnavailableError(f"{member} is compressed in a way that is not supported")
        with package.open(info) as stream:
            _copy_member(stream, info.file_size, to, most_bytes, check)


def _extract_tarred(file: IO[bytes], member: str, to: Path, most_bytes: int, check: Check) -> None:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        info = _found(tar, member, check)
        if not info.isreg() or info.issparse():
            raise UnavailableError(f"{member} is not a regular file")
        stream = tar.extractfile(info)
        assert stream  # noqa: S101 - regular files have one
        with stream:
            _copy_member(stream, info.size, to, most_bytes, check)


def _found(tar: tarfile.TarFile, member: str, check: Check) -> tarfile.TarInfo:
    for number in range(MOST_MEMBERS):
        info = tar.next()
        if info is None:
            raise UnavailableError(f"the archive has no {member}")
        if info.name == member:
            return info
        if not number % 1000:
            check()
    raise UnavailableError(f"the archive has more than {MOST_MEMBERS} files")


def _copy_member(stream: IO[bytes], size: int, to: Path, most_bytes: int, check: Check) -> None:
    if size > most_bytes:
        raise UnavailableError(f"the member has {human_bytes(size)}, {human_bytes(most_bytes)} at most are taken")
    with to.open("wb") as file:
        while chunk := stream.read(CHUNK):
            file.write(chunk)
            check()
            if file.tell() > most_bytes:
                raise UnavailableError(f"the member has more than {human_bytes(most_bytes)}")


def _decompressed(archive: Path, to: Path, most_bytes: int, check: Check) -> Path:
    """Return a tar archive without its compression: the file itself, or one written to `to`."""
    with archive.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        pieces = _pieces(start, file)
        if not pieces:
            return archive
        with to.open("wb") as plain:
            for piece in pieces:
                plain.write(piece)
                check()
                if plain.tell() > most_bytes:
                    raise UnavailableError(f"the archive has more than {human_bytes(most_bytes)} when decompressed")
    return to


def _pieces(start: bytes, file: IO[bytes]) -> Iterable[bytes] | None:
    """Return what a compressed file holds, in small pieces; nothing when it is not compressed."""
    if start.startswith(b"\x1f\x8b"):
        return iter(partial(gzip.GzipFile(fileobj=file).read, CHUNK), b"")
    if start.startswith(b"BZh"):
        return _decompress(file, bz2.BZ2Decompressor)
    if start.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return _decompress(file, lambda: lzma.LZMADecompressor(memlimit=MOST_MEMORY))
    return None


def _decompress(file: IO[bytes], new: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Yield what one stream after the other holds; LZMAFile would do it without a limit on memory."""
    while data := file.read(CHUNK):
        data = data.lstrip(b"\0")  # behind a stream, as its format allows
        if not data:
            continue
        stream = new()
        while not stream.eof:
            if stream.needs_input and not data and not (data := file.read(CHUNK)):
                raise EOFError("it ends too early")
            yield stream.decompress(data, CHUNK)
            data = b""
        file.seek(-len(stream.unused_data), io.SEEK_CUR)
