"""Archives that two programs would read in two ways are refused; what importers' own writers make is taken."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vmimage.formats.archive import BLOCK, MOST_MEMBERS, MOST_PADDING, USTAR_LIMIT, append, member, opened_archive

Change = Callable[[bytearray], None]
SIZE_AT, KIND_AT, LINK_AT, MAGIC_AT, PREFIX_AT = 124, 156, 157, 257, 345


def packed(*names: str, data: bytes = b"text") -> bytearray:
    archive = io.BytesIO()
    for name in names:
        append(archive, name, data)
    return bytearray(archive.getvalue() + bytes(2 * BLOCK))


def read(data: bytes | bytearray, folder: Path) -> list[tuple[str, bytes]]:
    path = folder / "archive"
    path.write_bytes(data)
    with opened_archive(path) as archive:
        return [(name, archive.text(name)) for name in archive.members]


def signed(data: bytearray, at: int = 0) -> bytearray:
    """Make the checksum of a header true again after a change."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
    return data


def put(at: int, new: bytes) -> Change:
    def change(data: bytearray) -> None:
        data[at : at + len(new)] = new
        signed(data)

    return change


def put_sparse(data: bytearray) -> None:
    """Let GNU's readers see two pieces with a gap between them."""
    put(KIND_AT, b"S")(data)
    put(MAGIC_AT, b"ustar  \0")(data)
    put(386, b"%011o\0%011o\0%011o\0%011o\0" % (0, 2, 1026, 2))(data)
    put(483, b"%011o\0" % 1028)(data)


HEADERS: dict[str, tuple[Change, str]] = {
    "an old type": (put(KIND_AT, b"\0"), "is not a plain file"),
    "a contiguous file": (put(KIND_AT, b"7"), "is not a plain file"),
    "a hard link": (put(KIND_AT, b"1"), "is not a plain file"),
    "a symbolic link": (put(KIND_AT, b"2"), "is not a plain file"),
    "a device": (put(KIND_AT, b"3"), "is not a plain file"),
    "a folder": (put(KIND_AT, b"5"), "is not a plain file"),
    "GNU's sparse file": (put_sparse, "is not a plain file"),
    "GNU's long name": (put(KIND_AT, b"L"), "is not a plain file"),
    "GNU's volume label": (put(KIND_AT, b"V"), "is not a plain file"),
    "a pax header": (put(KIND_AT, b"x"), "is a pax archive"),
    "a global pax header": (put(KIND_AT, b"g"), "is a pax archive"),
    "a vendor's type": (put(KIND_AT, b"Z"), "is not a plain file"),
    "a file that is a link": (put(LINK_AT, b"b"), "is not a plain file"),
    "a folder in the prefix": (put(PREFIX_AT, b"folder"), "is not in ustar"),
    "something behind the prefix": (put(505, b"x"), "is not in ustar"),
    "no magic": (put(MAGIC_AT, bytes(8)), "is not in ustar"),
    "another magic": (put(MAGIC_AT, b"ustar\x0001"), "is not in ustar"),
    "no name": (put(0, bytes(100)), "is not a plain file"),
    "a name with a slash": (put(0, b"a/b"), "is not a plain file"),
    "the folder above": (put(0, b"..\0"), "is not a plain file"),
    "a hidden name": (put(0, b".a"), "is not a plain file"),
    "a name with a space": (put(0, b"a b"), "is not a plain file"),
    "a name in two lines": (put(0, b"a\nb"), "is not a plain file"),
    "a name with letters of others": (put(0, "ä".encode()), "is not a plain file"),
    "a name that goes on behind its end": (put(0, b"a\0b"), "is not a plain file"),
    "a size in spaces": (put(SIZE_AT, b"          4\0"), "a size that is no number"),
    "a size with a sign": (put(SIZE_AT, b"-0000000004\0"), "a size that is no number"),
    "no size": (put(SIZE_AT, bytes(12)), "a size that is no number"),
    "a small size in GNU's form": (put(SIZE_AT, b"\x80" + (4).to_bytes(11, "big")), "a size that is no number"),
    "a negative size": (put(SIZE_AT, b"\xff" * 12), "a size that is no number"),
    "an absurd size": (put(SIZE_AT, b"\x80" + b"\xff" * 11), "a size that is no number"),
    "a size beyond the end": (put(SIZE_AT, b"00000077777\0"), "is cut short"),
    "a wrong checksum": (lambda data: data.__setitem__(100, 0x39), "there is no header at byte 0"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_header_that_is_read_in_several_ways_is_refused(case: str, tmp_path: Path) -> None:
    change, why = HEADERS[case]
    data = packed("first.ovf")
    assert read(data, tmp_path) == [("first.ovf", b"text")]
    change(data)
    with pytest.raises(ValueError, match=re.escape(why)):
        read(data, tmp_path)


LAYOUTS: dict[str, tuple[bytes | bytearray, str]] = {
    "the same name": (packed("a", "b", "a"), "stands in it twice"),
    "the same name in capitals": (packed("disk.vmdk", "DISK.vmdk"), "stands in it twice"),
    "no end": (packed("a")[: 2 * BLOCK], "is cut short"),
    "half an end": (packed("a")[:-BLOCK], "two blocks of zeros should end it"),
    "an odd end": (packed("a") + b"\0", "two blocks of zeros should end it"),
    "a byte behind the end": (packed("a") + bytes(BLOCK - 1) + b"x", "something behind its end"),
    "another archive behind it": (packed("a") + packed("b"), "something behind its end"),
    "a member behind one block of zeros": (packed("a")[: 3 * BLOCK] + packed("b"), "something behind its end"),
    "more zeros than anybody writes": (packed("a") + bytes(MOST_PADDING), "something behind its end"),
    "something between members": (
        packed("a")[: 2 * BLOCK - 1] + b"x" + packed("b"),
        "is followed by other bytes than zeros",
    ),
    "very many members": (packed(*(f"m{n}" for n in range(MOST_MEMBERS + 1))), f"more than {MOST_MEMBERS} members"),
    "no regular header": (b"x" * 4 * BLOCK, "there is no header at byte 0"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_archive_that_ends_in_several_ways_is_refused(case: str, tmp_path: Path) -> None:
    data, why = LAYOUTS[case]
    with pytest.raises(ValueError, match=re.escape(why)):
        read(data, tmp_path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file"), opened_archive(path):
            pass


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_archives_of_others_are_read(form: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for name, text in (("a.ovf", b"x" * 700), ("b_1-2.vmdk", b"")):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.uname, info.mode = len(text), 1_700_000_000, 1000, "someone", 0o600
            archive.addfile(info, io.BytesIO(text))
    assert read((tmp_path / "a.tar").read_bytes(), tmp_path) == [("a.ovf", b"x" * 700), ("b_1-2.vmdk", b"")]


def test_member_of_more_than_8_gib_is_read_where_it_lies(tmp_path: Path) -> None:
    size = USTAR_LIMIT + 5
    path = tmp_path / "large.tar"
    with path.open("wb") as file:
        file.write(member("large.vmdk", size))
        file.seek(size - 5, 1)
        file.write(b"end..")
        file.seek(-size % BLOCK, 1)
        append(file, "last", b"x")
        file.write(bytes(2 * BLOCK))
    with opened_archive(path) as archive:
        assert [(each.name, each.offset, each.size) for each in archive.members.values()] == [
            ("large.vmdk", BLOCK, size),
            ("last", BLOCK + size + -size % BLOCK + BLOCK, 1),
        ]


def test_what_is_hashed_is_what_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(packed("first", "second", data=b"d" * 3_000_000))
    out = io.BytesIO()
    with opened_archive(tmp_path / "a") as archive:
        digest = archive.copy("second", out)
        assert (digest, archive.copy("second")) == (hashlib.sha256(out.getvalue()).hexdigest(), digest)
        assert out.getvalue() == b"d" * 3_000_000
        (tmp_path / "a").write_bytes(packed("first", "second", data=b"d" * 3_000_000)[:4_000_000])
        with pytest.raises(ValueError, match="cut short within second"):
            archive.copy("second")
        with pytest.raises(ValueError, match="too many for a text"):
            archive.text("first")


def test_tarfile_would_take_what_is_refused(tmp_path: Path) -> None:
    """Why there is a reader of our own: the library gives other bytes than those that lie in the archive."""
    data = packed("a.vmdk")
    put_sparse(data)
    (tmp_path / "a").write_bytes(data)
    with tarfile.open(tmp_path / "a") as archive:
        stream = archive.extractfile(archive.getmembers()[0])
        assert stream
        assert len(stream.read()) == 1028
    assert struct.unpack_from("4s", data, BLOCK) == (b"text",)
