"""Families of files that hold a disk, of the file system in one, and of the bundles of `dev-env update`."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

from dev_env.bundle import fetched
from dev_env.bundle import unpacked as unpacked_bundle

from tests.host.test_fuzz_formats import Corpus
from tests.hostile.mutations import cuts, flips, mixed, numbers, wrong_values
from tests.hostile.trial import WORK, Case, Family
from tests.tools import packed, update_bundle
from tests.unit.test_ova import Members, signed
from vmimage.cache.store import Store
from vmimage.commands.verify_file import facts_of
from vmimage.disk.raw import RawDisk
from vmimage.formats.vhd import CHECKSUM_AT, SECTOR, checksum
from vmimage.stages.verify.subject import File, image_facts, opened_disk

SUPERBLOCK = (1 << 20) + 1024
KINDS: Mapping[str, bytes] = {
    "a symbolic link": tarfile.SYMTYPE,
    "a hard link": tarfile.LNKTYPE,
    "a pipe": tarfile.FIFOTYPE,
    "a device": tarfile.CHRTYPE,
    "a folder": tarfile.DIRTYPE,
    "a sparse file": tarfile.GNUTYPE_SPARSE,
}
NAMES = ("../../../escaped", "/etc/escaped", "a/../../../escaped", "\x1b[2J", "", "x" * 5000, "\u202egnp", "a\\b")
DATA = "a block of the disk: the format has no sum of it, and a download is compared with its SHA-256"
SPARE = "a part of the file that nothing reads, or that may have any value"


def _opened(kind: str) -> Callable[[Path, Path], object]:
    return lambda path, folder: opened_disk(File(kind=kind, path=path), folder / WORK)


def _with_facts(kind: str) -> Callable[[Path, Path], object]:
    """Read the disk as well: a QCOW2 has no sum, and its end is missed only then."""
    return lambda path, folder: facts_of(File(kind=kind, path=path), Store(folder / WORK / "cache"))


def plain(corpus: Corpus, kind: str, more: Iterator[Case], either: Mapping[str, str], *, every: int = 1) -> Family:
    """Return the family of a format.

    Args:
        every: Take one of so many of the usual inputs, where each starts programs.
    """
    data = corpus.files[kind]
    return Family(
        read=(_with_facts if kind == "qcow2" else _opened)(kind),
        good=Case(name="good", data=data),
        cases=(*[*cuts(data), *flips(data), *mixed(data)][::every], *more),
        codes=(6,),
        either=either,
        file=f"input.{kind}",
    )


def _nothing(_: bytearray) -> None:
    pass


def _vhd_sum(data: bytearray) -> None:
    footer = data[-SECTOR:]
    struct.pack_into(">I", footer, CHECKSUM_AT, checksum(bytes(footer)))
    data[-SECTOR:] = footer


def vmdk(corpus: Corpus) -> Family:
    fields = {
        "capacity": (12, "<Q"), "grain size": (20, "<Q"), "the descriptor's place": (28, "<Q"),
        "the descriptor's size": (36, "<Q"), "entries of a table": (44, "<I"), "the directory's place": (56, "<Q"),
    }  # fmt: skip
    more = islice(numbers(corpus.files["vmdk"], fields, _nothing), 1, None, 2)
    either = {"flipped*": DATA, "the directory's place is negative": "it stands for: at the end"}
    return plain(corpus, "vmdk", more, either, every=2)


def qcow2(corpus: Corpus) -> Family:
    data = corpus.files["qcow2"]
    fields = {
        "the backing file's place": (8, ">Q"), "the backing file's name": (16, ">I"), "bits of a cluster": (20, ">I"),
        "size": (24, ">Q"), "encryption": (32, ">I"), "entries of the table": (36, ">I"),
        "the table's place": (40, ">Q"), "snapshots": (60, ">I"), "features": (72, ">Q"),
        "the header's size": (100, ">I"),
    }  # fmt: skip
    backed = bytearray(data)
    struct.pack_into(">QI", backed, 8, 512, 11)
    backed[512:523] = b"/etc/passwd"
    more = chain(
        islice(numbers(data, fields, _nothing), 1, None, 4),
        [Case(name="a file of this host behind it", data=bytes(backed))],
    )
    either = {"flipped*": DATA, "the backing file's name*": "there is no backing file"}
    return plain(corpus, "qcow2", more, either, every=4)


def vhd(corpus: Corpus) -> Family:
    data = corpus.files["vhd"]
    end = len(data) - SECTOR
    fields = {
        "features": (end + 8, ">I"), "version": (end + 12, ">I"), "the place of more": (end + 16, ">Q"),
        "first size": (end + 40, ">Q"), "size": (end + 48, ">Q"), "kind": (end + 60, ">I"),
    }  # fmt: skip
    more = numbers(data, fields, _vhd_sum)
    either = {
        "flipped at [0-7]/8": DATA, "features*": SPARE, "version*": SPARE, "first size*": SPARE,
        "the place of more is negative": "it stands for: there is no more",
    }  # fmt: skip
    return plain(corpus, "vhd", more, either)


def raw_zst(corpus: Corpus) -> Family:
    data = corpus.files["raw.zst"]
    more = [
        Case(name="a frame that is skipped", data=data + struct.pack("<II", 0x184D2A50, 0xFFFFFFF0)),
        Case(name="a window of 2 GiB", data=data[:4] + b"\x00\xa8" + data[6:]),
    ]
    return plain(corpus, "raw.zst", iter(more), {"flipped*": DATA, "twice": "a disk of twice the size"})


def vhdx(corpus: Corpus) -> Family:
    return plain(corpus, "vhdx", iter(()), {"flipped*": DATA, "cut at 6/8": DATA, "garbage behind it": SPARE}, every=3)


def members_of(data: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]


def archives(corpus: Corpus, kind: str) -> Family:
    """Members that are no files, or have other names, sizes and orders than they should."""
    data = corpus.files[kind]
    either = {} if kind == "ova" else {"flipped*": DATA, "the last is empty": "the Vagrantfile may be so"}
    more = islice(_archives(members_of(data)), 0, None, 1 if kind == "ova" else 2)
    return plain(corpus, kind, more, either)


def _archives(members: Members) -> Iterator[Case]:
    first, rest = members[0], members[1:]
    for what, form in KINDS.items():
        yield Case(name=f"{what} before it", data=_entry("x", form) + packed(dict(members)))
        yield Case(
            name=f"{what} in place of the last", data=_tar(members[:-1]) + _entry(members[-1][0], form) + bytes(1024)
        )
    for number, name in enumerate(NAMES):
        yield Case(name=f"a name {number}", data=_tar([(name or ".", first[1]), *rest]) + bytes(1024))
        yield Case(name=f"one more with a name {number}", data=_tar([*members, (name or ".", b"x")]) + bytes(1024))
    yield Case(name="one of them twice", data=_tar([*members, members[-1]]) + bytes(1024))
    yield Case(name="the first is empty", data=_tar(signed([(first[0], b""), *rest])) + bytes(1024))
    yield Case(name="the last is empty", data=_tar([*members[:-1], (members[-1][0], b"")]) + bytes(1024))
    yield Case(name="the wrong way round", data=_tar(members[::-1]) + bytes(1024))
    yield Case(name="many", data=_tar([*members, *((f"m{n}", b"") for n in range(5000))]) + bytes(1024))
    for what, size in (("negative", b"-0000000001"), ("huge", b"77777777777"), ("of other digits", b"99999999999")):
        head = bytearray(_tar([first])[:512])
        head[124:135] = size
        _sum(head)
        yield Case(name=f"a size that is {what}", data=bytes(head) + _tar(members)[512:] + bytes(1024))


def _tar(members: Members) -> bytes:
    """Return members without the end of an archive."""
    out = b""
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        out += info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    return out


def _entry(name: str, form: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = form, "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT)


def _sum(head: bytearray) -> None:
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)


def file_systems(corpus: Corpus) -> Family:
    data = corpus.files["raw"]
    fields = {
        name: (SUPERBLOCK + at, form)
        for name, (at, form) in {
            "inodes": (0, "<I"), "blocks": (4, "<I"), "first block": (20, "<I"),
            "blocks of a group": (32, "<I"), "inodes of a group": (40, "<I"), "inode size": (88, "<H"),
            "features": (96, "<I"),
        }.items()
    }  # fmt: skip
    table = {"the partition's place": (1024 + 32, "<Q"), "the partition's end": (1024 + 40, "<Q")}
    root = {"the root's inode": ((1 << 20) + data[1 << 20 :].index(b"lost+found") - 32, "<I")}
    place = data.index(b'{"image"')

    def read(path: Path, folder: Path) -> object:
        return image_facts(RawDisk(path), folder / WORK)

    texts = (text.text[:60] for text in wrong_values({"image": "x", "components": [], "versions": {}}, each=1))
    facts = (data[:place] + text.ljust(60)[:60] + data[place + 60 :] for text in texts)
    return Family(
        read=read,
        good=Case(name="good", data=data),
        cases=(
            *[*cuts(data), *mixed(data[: 1 << 20])][::4],
            *islice(numbers(data, fields | table | root, _nothing), 1, None, 5),
            *(Case(name=f"facts {number}", data=text) for number, text in enumerate(facts)),
        ),
        codes=(6,),
    )


def bundles(base: Path) -> Family:
    base.mkdir()
    files = {"k3s": b"#!/bin/sh\n" * 100, "helm": b"#!/bin/sh\n"}
    data = update_bundle(base / "bundle.tar", files, version="v1.1.0").read_bytes()
    index = json.loads(dict(members_of(data))["update.json"])

    def read(path: Path, folder: Path) -> object:
        return unpacked_bundle(fetched(str(path), "", folder / WORK), folder / WORK)

    def changed(index: bytes) -> bytes:
        return packed({"update.json": index, **files})

    return Family(
        read=read,
        good=Case(name="good", data=data),
        cases=(
            *cuts(data[: data.rindex(b"#!/bin/sh")]),
            *flips(data[:512]),
            *mixed(data),
            *_archives(members_of(data)),
            *(Case(name=case.name, data=changed(case.text)) for case in wrong_values(index, each=2)),
            Case(name="a deep index", data=changed(b"[" * 60_000)),
            Case(name="a large index", data=changed(json.dumps(index).encode() + b" " * 70_000)),
            Case(name="no index", data=packed(files)),
        ),
        codes=(1,),
        taken={
            "twice": SPARE,
            "garbage behind it": SPARE,
            "one more with a name *": "what the index does not name stays in the archive",
            "one of them twice": "its SHA-256 decides",
            "the wrong way round": "the order says nothing",
            "files.k3s: left out": "then only the other is replaced",
            "files.helm: left out": "then only the other is replaced",
        },
    )


DISKS: dict[str, Callable[[Corpus, Path], Family]] = {
    "vmdk": lambda corpus, base: vmdk(corpus),
    "qcow2": lambda corpus, base: qcow2(corpus),
    "vhd": lambda corpus, base: vhd(corpus),
    "vhdx": lambda corpus, base: vhdx(corpus),
    "raw.zst": lambda corpus, base: raw_zst(corpus),
    "ova": lambda corpus, base: archives(corpus, "ova"),
    "libvirt.box": lambda corpus, base: archives(corpus, "libvirt.box"),
    "virtualbox.box": lambda corpus, base: archives(corpus, "virtualbox.box"),
    "file systems": lambda corpus, base: file_systems(corpus),
    "bundles": lambda corpus, base: bundles(base),
}
