"""Mutated files of every format: each is taken, or refused by the error of its kind, within time and memory.

The same mutations in every run; `invoke fuzz --minutes N` tries others for as long as that.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import struct
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.test_ova import APPLIANCE, Members, signed
from vmimage.disk.ext4 import read_tree
from vmimage.disk.raw import ROOT_TYPE, RawDisk
from vmimage.formats.all import BY_NAME, open_disk
from vmimage.formats.archive import append, finish, opened_archive
from vmimage.formats.contained import require_self_contained
from vmimage.formats.format import write_raw
from vmimage.formats.ovf import read_descriptor
from vmimage.formats.vhd import CHECKSUM_AT, SECTOR, checksum
from vmimage.util.errors import VerifyError
from vmimage.util.run import run

SECONDS = 60 * float(os.environ.get("VMIMAGE_FUZZ_MINUTES", "0"))
"""In all; none for one short round."""
SLOWEST_SECONDS = 30.0
MOST_MEMORY = 2 << 30
DISK_BYTES = 2 << 20
Edits = list[tuple[str, float, bytes]]

# Numbers at which readers go wrong, in both orders of bytes.
NUMBERS = [0, 1, 2, 127, 128, 255, 511, 512, 513]
NUMBERS += [(1 << power) + more for power in (16, 31, 32, 40, 63, 64) for more in (-1, 0)]
PACKED = [struct.pack(form, number % (1 << width)) for number in NUMBERS for form, width in
          (("<I", 32), (">I", 32), ("<Q", 64), (">Q", 64), (">H", 16))]  # fmt: skip
TEXTS = [
    b"<!DOCTYPE a>",
    b"<a>",
    b"</",
    b"&x;",
    b'"',
    b"\0",
    b"\n",
    b"\xff",
    b"../",
    b"9" * 30,
    b"[" * 50,
    b"\xef\xbb\xbf",
    b"/",
]
# Of the file: mostly its beginning and its end, where headers and footers are.
PLACES = st.one_of(st.floats(0, 1), st.floats(0, 0.002), st.floats(0.998, 1))
PIECES = st.one_of(st.sampled_from(PACKED), st.sampled_from(TEXTS), st.binary(min_size=1, max_size=8))
EDITS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "insert", "cut", "repeat", "drop"]), PLACES, PIECES),
    min_size=1,
    max_size=5,
)


def mutated(data: bytes, edits: Edits) -> bytes:
    out = bytearray(data)
    for what, place, piece in edits:
        at = int(place * len(out))
        if what == "put":
            out[at : at + len(piece)] = piece
        elif what == "insert":
            out[at:at] = piece
        elif what == "cut":
            del out[at:]
        elif what == "drop":
            del out[at : at + len(piece)]
        else:
            out += out[at:]
    return bytes(out)


@dataclass
class Corpus:
    """Good files of a small disk, and a folder to work in."""

    work: Path
    files: dict[str, bytes]

    def written(self, kind: str, data: bytes) -> Path:
        path = self.work / f"fuzzed.{kind}"
        path.write_bytes(data)
        return path

    def opened(self, kind: str, data: bytes) -> None:
        """Do what verify does with a file."""
        disk = open_disk(kind, self.written(kind, data), self.work)
        if disk.format != "raw":
            write_raw(disk, self.work / "out.raw")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    work = tmp_path_factory.mktemp("fuzz")
    tree, raw = work / "tree", work / "source.raw"
    (tree / "etc/vmimage").mkdir(parents=True)
    (tree / "etc/vmimage/release.json").write_text('{"image": "x", "components": [], "versions": {}}')
    for number in range(40):
        (tree / "etc" / f"file-{number}").write_bytes(os.urandom(200) * (number % 7))
    (tree / "etc/link").symlink_to("file-1")
    start = 1 << 20
    with raw.open("wb") as file:
        file.truncate(start + DISK_BYTES + start)
    (work / "table").write_text(f"label: gpt\nstart={start // 512}, size={DISK_BYTES // 512}, type={ROOT_TYPE}\n")
    run(["sh", "-euc", 'sfdisk --quiet --no-reread --no-tell-kernel "$1" < "$2"', "sh", raw, work / "table"])
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "-E", f"offset={start}", raw, f"{DISK_BYTES >> 10}k"])
    files = {"raw": raw.read_bytes()}
    for name, each in BY_NAME.items():
        path = work / f"good.{name}"
        each.write(raw, path, each.options(), APPLIANCE)
        files[name] = path.read_bytes()
        open_disk(name, path, work)
    return Corpus(work, files)


def ova_of(corpus: Corpus) -> Members:
    with tarfile.open(fileobj=io.BytesIO(corpus.files["ova"])) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]


def archives(corpus: Corpus, edits: Edits) -> None:
    """Headers, with sums that are true again. What is taken, another reader reads in the same way."""
    text = io.BytesIO()
    for name in ("a.ovf", "b.vmdk", "a.mf"):
        append(text, name, name.encode() * 100)
    finish(text)
    data = bytearray(mutated(text.getvalue(), edits))
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path = corpus.written("tar", bytes(data))
    with opened_archive(path) as archive:
        ours = [(name, archive.copy(name)) for name in archive.members]
    with tarfile.open(path) as other:
        theirs = [(i.name, hashlib.sha256(other.extractfile(i).read()).hexdigest()) for i in other]  # type: ignore[union-attr]
    assert ours == theirs


def descriptors(corpus: Corpus, edits: Edits) -> None:
    read_descriptor(mutated(ova_of(corpus)[0][1], edits))


def appliances(corpus: Corpus, edits: Edits) -> None:
    """One member, with digests that are true again."""
    members = ova_of(corpus)
    which = len(edits) % 3
    members[which] = (members[which][0], mutated(members[which][1], edits))
    out = io.BytesIO()
    for name, data in signed(members) if which < 2 else members:
        append(out, name, data)
    finish(out)
    corpus.opened("ova", out.getvalue())


def vmdk_headers(corpus: Corpus, edits: Edits) -> None:
    require_self_contained(corpus.written("vmdk", mutated(corpus.files["vmdk"], edits)), "vmdk")


def qcow2_headers(corpus: Corpus, edits: Edits) -> None:
    require_self_contained(corpus.written("qcow2", mutated(corpus.files["qcow2"], edits)), "qcow2")


def footers_of_vhd(corpus: Corpus, edits: Edits) -> None:
    data = bytearray(mutated(corpus.files["vhd"][-SECTOR:], edits))
    if len(data) == SECTOR:
        struct.pack_into(">I", data, CHECKSUM_AT, checksum(bytes(data)))
    corpus.opened("vhd", corpus.files["vhd"][:-SECTOR] + bytes(data))


def file_systems(corpus: Corpus, edits: Edits) -> None:
    """The tables at the beginning of the root; what is not a tree is an error too."""
    raw = corpus.files["raw"]
    start = 1 << 20
    tables = mutated(raw[start : start + (256 << 10)], [edit for edit in edits if edit[0] == "put"])
    read_tree(RawDisk(corpus.written("raw", raw[:start] + tables + raw[start + len(tables) :])), corpus.work)


def whole(kind: str) -> Callable[[Corpus, Edits], None]:
    return lambda corpus, edits: corpus.opened(kind, mutated(corpus.files[kind], edits))


TARGETS: dict[str, tuple[Callable[[Corpus, Edits], None], int]] = {
    "archives": (archives, 150),
    "descriptors": (descriptors, 150),
    "headers of VMDK": (vmdk_headers, 100),
    "headers of qcow2": (qcow2_headers, 100),
    "appliances": (appliances, 8),
    "footers of VHD": (footers_of_vhd, 8),
    "file systems": (file_systems, 4),
    "vmdk": (whole("vmdk"), 8),
    "qcow2": (whole("qcow2"), 8),
    "vhdx": (whole("vhdx"), 5),
    "raw.zst": (whole("raw.zst"), 40),
    "libvirt.box": (whole("libvirt.box"), 20),
    "virtualbox.box": (whole("virtualbox.box"), 20),
}
"""What is tried -> the function that reads it, and how often in the short round."""


@pytest.mark.timeout(60 + SECONDS / len(TARGETS) * 2)
@pytest.mark.parametrize("target", TARGETS)
def test_mutated_file_is_taken_or_refused(target: str, corpus: Corpus) -> None:
    function, examples = TARGETS[target]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not SECONDS,
        suppress_health_check=list(HealthCheck),
    )
    @given(edits=EDITS)
    def tried(edits: Edits) -> None:
        started = time.monotonic()
        # What `opened_disk` and all that read a disk turn into an error message.
        with contextlib.suppress(ValueError, OSError, VerifyError):
            function(corpus, edits)
        assert time.monotonic() - started < SLOWEST_SECONDS

    end = time.monotonic() + SECONDS / len(TARGETS)
    with little_memory():
        tried()
        while time.monotonic() < end:
            tried()


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Let more memory than files of this size need be an error."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_good_files_are_taken(corpus: Corpus) -> None:
    """So that what is refused is refused for its mutation."""
    for function, _ in TARGETS.values():
        function(corpus, [])
