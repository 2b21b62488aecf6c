from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vmimage import PROJECT
from vmimage.formats.archive import USTAR_LIMIT, member
from vmimage.formats.format import Appliance
from vmimage.formats.ova import check_ova, write_ova

TEMPLATE = PROJECT / "templates" / "appliance.ovf.j2"


OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"


APPLIANCE = Appliance(
    name="box",
    version="20261123-abcdef01",
    vendor="R&D <team>",
    summary='says "hello" & more',
    cpus=2,
    memory_mib=4096,
    forwards=(("ssh", 2222, 22), ("http", 8080, 80)),
)


def sparse_disk(folder: Path) -> Path:
    """Make a disk of 64 MiB with a little at its beginning and behind a hole."""
    path = folder / "disk.raw"
    with path.open("wb") as file:
        file.write(b"boot" * 1000)
        file.seek(40 << 20)
        file.write(b"data" * 100_000)
        file.truncate(64 << 20)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return sparse_disk(tmp_path)


def test_children_of_items_are_in_alphabetical_order(disk: Path, tmp_path: Path) -> None:
    write_ova(disk, tmp_path / "box.ova", APPLIANCE, TEMPLATE, level=5)
    with tarfile.open(tmp_path / "box.ova") as archive:
        envelope = ET.fromstring(archive.extractfile(archive.getmembers()[0]).read())  # type: ignore[union-attr]  # noqa: S314
    items = [[child.tag for child in item] for item in envelope.iter(f"{OVF}Item")]
    assert len(items) == 5
    assert all(tags == sorted(tags) for tags in items)


def test_same_inputs_same_bytes(disk: Path, tmp_path: Path) -> None:
    write_ova(disk, tmp_path / "a.ova", APPLIANCE, TEMPLATE, level=5, threads=1)
    write_ova(disk, tmp_path / "b.ova", APPLIANCE, TEMPLATE, level=5, threads=3)
    assert (tmp_path / "a.ova").read_bytes() == (tmp_path / "b.ova").read_bytes()


def test_archive_is_ustar_and_larger_members_are_gnu() -> None:
    assert member("a.ovf", 100)[257:265] == b"ustar\x0000"
    assert member("a.vmdk", USTAR_LIMIT)[257:265] == b"ustar  \0"
    assert tarfile.TarInfo.frombuf(member("a.vmdk", 9 << 30), "utf-8", "strict").size == 9 << 30


def test_archive_that_cannot_be_written(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_ova(disk, Path("/dev/full"), APPLIANCE, TEMPLATE, level=5)


Members = list[tuple[str, bytes]]


@pytest.fixture
def good(disk: Path, tmp_path: Path) -> Members:
    """The members of an archive that is accepted."""
    write_ova(disk, tmp_path / "good.ova", APPLIANCE, TEMPLATE, level=5)
    check_ova(tmp_path / "good.ova")
    with tarfile.open(tmp_path / "good.ova") as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]


def packed(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT, mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {"comment": "x"}
            archive.addfile(info, BytesIO(data))
    return path


def signed(members: Members) -> Members:
    """Make the manifest true again after a change."""
    lines = [f"SHA256({name})= {hashlib.sha256(data).hexdigest()}\n" for name, data in members if name[-3:] != ".mf"]
    return [(name, "".join(lines).encode() if name.endswith(".mf") else data) for name, data in members]


def flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def changed(members: Members, suffix: str, change: Callable[[bytes], bytes]) -> Members:
    return [(name, change(data) if name.endswith(suffix) else data) for name, data in members]


WRONG: dict[str, tuple[Callable[[Members], Members], str]] = {
    "wrong digest": (lambda m: changed(m, ".mf", lambda d: d.replace(b"= ", b"= 0", 1)[:-1]), "no SHA-256"),
    "another digest": (
        lambda m: changed(m, ".mf", lambda d: re.sub(rb"= [0-9a-f]{8}", b"= 00000000", d, count=1)),
        "has the SHA-256",
    ),
    "flipped byte": (lambda m: changed(m, ".vmdk", flipped), "has the SHA-256"),
    "truncated disk": (lambda m: signed(changed(m, ".vmdk", lambda d: d[:-512])), "and the descriptor says"),
    "no disk": (lambda m: signed([m[0], m[2]]), "the disk box.vmdk is missing"),
    "no manifest": (lambda m: m[:2], "the manifest box.mf is missing"),
    "reordered": (lambda m: [m[1], m[0], m[2]], "its first member is not the .ovf"),
    "manifest before the disk": (lambda m: [m[0], m[2], m[1]], "does not come right after the descriptor"),
    "one more member": (lambda m: [*m, ("extra", b"x")], "lists"),
    "wrong capacity": (
        lambda m: signed(changed(m, ".ovf", lambda d: d.replace(b'capacity="67108864"', b'capacity="67108865"'))),
        "is a disk of 67108864 bytes",
    ),
    "wrong size": (
        lambda m: signed(changed(m, ".ovf", lambda d: re.sub(rb'ovf:size="\d+"', b'ovf:size="7"', d))),
        "and the descriptor says 7",
    ),
    "not XML": (lambda m: signed(changed(m, ".ovf", lambda d: b"<Envelope>")), "its descriptor is not XML"),
    "no VMDK": (lambda m: signed(changed(m, ".vmdk", lambda d: b"x" * len(d))), "is no VMDK"),
    "an ordinary second descriptor": (lambda m: signed([*m, ("other.ovf", m[0][1])]), "names only box.vmdk"),
    "a certificate": (lambda m: [*m, ("box.cert", b"x")], "lists"),
    "listed twice": (lambda m: changed(m, ".mf", lambda d: d + d.splitlines(keepends=True)[1]), "lists box.vmdk twice"),
    "a line that others see as two": (
        lambda m: changed(m, ".mf", lambda d: d.replace(b"\n", b"\x1c")),
        "has a line that is no SHA-256",
    ),
    "an empty line": (lambda m: changed(m, ".mf", lambda d: d + b"\n"), "has a line that is no SHA-256"),
    "lines of Windows": (lambda m: changed(m, ".mf", lambda d: d.replace(b"\n", b"\r\n")), "no SHA-256"),
    "path": (lambda m: [(f"./{name}", data) for name, data in m], "is not a plain file at the top"),
}


@pytest.mark.parametrize("case", WRONG)
def test_broken_archive_is_refused_with_the_reason(case: str, good: Members, tmp_path: Path) -> None:
    change, why = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(why)):
        check_ova(packed(tmp_path / "bad.ova", change(good)))


def descriptor(change: Callable[[bytes], bytes]) -> Callable[[Members], Members]:
    def changed_once(old: bytes) -> bytes:
        new = change(old)
        assert new != old
        return new

    return lambda members: signed(changed(members, ".ovf", changed_once))


DESCRIPTORS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "UTF-16": (lambda d: d.decode().encode("utf-16"), "is not UTF-8"),
    "UTF-16 without a mark": (lambda d: d.decode().encode("utf-16-le"), "not in UTF-8"),
    "Latin-1 by its own word": (lambda d: d.replace(b'"UTF-8"', b'"ISO-8859-1"'), "not in UTF-8"),
    "an unknown encoding": (lambda d: d.replace(b'"UTF-8"', b"'x-none'"), "not in UTF-8"),
    "no UTF-8": (lambda d: d.replace(b"R&amp;D", b"\xff"), "is not UTF-8"),
    "a document type": (lambda d: d.replace(b"<Envelope", b"<!DOCTYPE x><Envelope", 1), "a document type"),
    "an entity": (
        lambda d: d.replace(b"<Envelope", b'<!DOCTYPE x [<!ENTITY e "x">]><Envelope', 1).replace(b"R&amp;D", b"&e;"),
        "a document type",
    ),
    "very deep": (lambda d: d.replace(b"<References>", b"<a>" * 5000 + b"<References>"), "levels deep"),
    "OVF 2": (lambda d: d.replace(b"ovf/envelope/1", b"ovf/envelope/2"), "not an OVF 1 envelope"),
    "another root": (lambda d: b"<Other>" + d.partition(b"?>")[2] + b"</Other>", "not an OVF 1 envelope"),
    "a unit": (lambda d: d.replace(b'Units="byte"', b'Units="byte * 2^9"'), "is a disk of 67108864 bytes"),
    "an unknown unit": (lambda d: d.replace(b'Units="byte"', b'Units="MegaBytes"'), "unit of the disk's capacity"),
    "an absurd unit": (lambda d: d.replace(b'Units="byte"', b'Units="byte * 2^99"'), "unit of the disk's capacity"),
    "digits of others": (
        lambda d: d.replace(b'"67108864"', '"\u0666\u0667\u0661\u0660\u0668\u0668\u0666\u0664"'.encode()),
        "is no number",
    ),
    "a number with a bar": (lambda d: d.replace(b'"67108864"', b'"67_108_864"'), "is no number"),
    "a number with a sign": (lambda d: d.replace(b'"67108864"', b'"+67108864"'), "is no number"),
    "a number with a space": (lambda d: d.replace(b'"67108864"', b'" 67108864"'), "is no number"),
    "a very long number": (lambda d: d.replace(b'"67108864"', b'"' + b"0" * 5000 + b'67108864"'), "is no number"),
    "a compressed file": (lambda d: d.replace(b" ovf:href", b' ovf:compression="gzip" ovf:href'), "compression"),
    "a file in pieces": (lambda d: d.replace(b" ovf:href", b' ovf:chunkSize="5" ovf:href'), "chunkSize"),
    "a second name": (lambda d: d.replace(b" ovf:href", b' href="other.vmdk" ovf:href'), "an attribute href"),
    "a parent": (lambda d: d.replace(b" ovf:capacity=", b' ovf:parentRef="p" ovf:capacity='), "parentRef"),
    "two files": (lambda d: d.replace(b"<References>", b'<References><File ovf:href="x"/>'), "has 2 elements File"),
    "a file of another kind": (
        lambda d: d.replace(b"<References>", b'<References><File xmlns="" href="x"/>'),
        "has 2 elements File",
    ),
    "two disks": (lambda d: d.replace(b"<DiskSection>", b"<DiskSection><Disk/>"), "has 2 elements Disk"),
    "a disk elsewhere": (
        lambda d: d.replace(b"<DiskSection>", b"<Section>").replace(b"</DiskSection>", b"</Section>"),
        "instead of one in DiskSection",
    ),
    "a disk from nowhere": (lambda d: d.replace(b'fileRef="disk-file"', b'fileRef="other"'), "in another file"),
    "another format": (lambda d: d.replace(b"#streamOptimized", b"#sparse"), "has the format"),
    "another disk for the machine": (lambda d: d.replace(b"ovf:/disk/disk", b"ovf:/file/disk-file"), "another disk"),
    "a name outside": (lambda d: d.replace(b'"box.vmdk"', b'"../box.vmdk"'), "the disk ../box.vmdk is missing"),
    "no capacity": (lambda d: re.sub(rb'ovf:capacity="\d+"', b"", d), "lacks the capacity"),
    "nothing": (lambda d: b"", "is not XML"),
}


@pytest.mark.parametrize("case", DESCRIPTORS)
def test_descriptor_that_is_read_in_several_ways_is_refused(case: str, good: Members, tmp_path: Path) -> None:
    change, why = DESCRIPTORS[case]
    with pytest.raises(ValueError, match=re.escape(why)):
        check_ova(packed(tmp_path / "bad.ova", descriptor(change)(good)))


def test_units_and_marks_that_mean_the_same_are_taken(good: Members, tmp_path: Path) -> None:
    for change in (
        lambda d: d.replace(
            b'"67108864" ovf:capacityAllocationUnits="byte"', b'"64" ovf:capacityAllocationUnits="byte * 2^20"'
        ),
        lambda d: d.replace(b' ovf:capacityAllocationUnits="byte"', b""),
        lambda d: b"\xef\xbb\xbf" + d,
        lambda d: d.partition(b"?>")[2].lstrip(),
        lambda d: d.replace(b"ovf:/disk/disk", b"/disk/disk"),
    ):
        check_ova(packed(tmp_path / "other.ova", descriptor(change)(good)))


def test_pax_and_gzip_are_refused(good: Members, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is a pax archive"):
        check_ova(packed(tmp_path / "bad.ova", good, tarfile.PAX_FORMAT))
    with pytest.raises(ValueError, match="it is compressed by gzip"):
        check_ova(packed(tmp_path / "bad.ova", good, mode="w:gz"))


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_archive_that_is_cut_short_is_refused(good: Members, tmp_path: Path, part: float) -> None:
    data = packed(tmp_path / "bad.ova", good).read_bytes()
    (tmp_path / "bad.ova").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match=r"cut short|no readable tar|is missing"):
        check_ova(tmp_path / "bad.ova")


@pytest.mark.parametrize("content", [b"", b"no archive at all", bytes(10240)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.ova").write_bytes(content)
    with pytest.raises(ValueError, match=r"no readable tar|it is empty"):
        check_ova(tmp_path / "bad.ova")


def test_contents_say_where_the_disk_lies(good: Members, tmp_path: Path) -> None:
    contents = check_ova(tmp_path / "good.ova")
    data = (tmp_path / "good.ova").read_bytes()[contents.offset :][: contents.size]
    assert (contents.name, data) == good[1]
