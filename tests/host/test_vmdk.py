"""The writer against the reader that everybody uses: qemu-img turns its output back into exactly the source."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmimage.disk.raw import read_range
from vmimage.formats import vmdk
from vmimage.formats.vmdk import GRAIN, SECTOR, TABLE_SPAN, write_vmdk
from vmimage.util.run import run


def sparse(path: Path, size: int, pieces: dict[int, bytes]) -> Path:
    """Write a sparse file with some pieces of data at offsets."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data[: size - offset])
    return path


def written(disk: Path, threads: int | None = None) -> bytes:
    sink = BytesIO()
    done = write_vmdk(disk, sink, level=5, threads=threads)
    assert done.size == len(sink.getvalue())
    return sink.getvalue()


def require_equal(disk: Path, data: bytes, folder: Path) -> None:
    """Check a VMDK with qemu-img, and that it holds exactly the disk."""
    image = folder / "image.vmdk"
    image.write_bytes(data)
    run(["qemu-img", "check", "-q", image])
    back = folder / "back.raw"
    run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", image, back])
    assert back.stat().st_size == disk.stat().st_size
    run(["cmp", disk, back])


PIECES = st.dictionaries(
    st.integers(0, 3 * TABLE_SPAN // SECTOR).map(lambda sector: sector * SECTOR),
    st.one_of(
        st.binary(min_size=1, max_size=300), st.sampled_from([b"x" * GRAIN, bytes(3 * GRAIN), b"ab" * 5 * GRAIN])
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sectors=st.integers(1, 3 * TABLE_SPAN // SECTOR), pieces=PIECES, threads=st.integers(1, 3))
def test_random_sparse_disks_come_back(tmp_path: Path, sectors: int, pieces: dict[int, bytes], threads: int) -> None:
    size = sectors * SECTOR
    inside = {offset: data for offset, data in pieces.items() if offset < size}
    disk = sparse(tmp_path / "disk.raw", size, inside)
    data = written(disk, threads=threads)
    assert data == written(disk, threads=1), "the same disk gives the same bytes"
    require_equal(disk, data, tmp_path)


def test_incompressible_grains_come_back(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(5 * GRAIN)  # noqa: S311
    disk = sparse(tmp_path / "disk.raw", 40 << 20, {7 * GRAIN: noise})
    require_equal(disk, written(disk), tmp_path)


def test_empty_disk_is_small(tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk.raw", 40 << 30, {})
    data = written(disk)
    assert len(data) < 100_000
    require_equal(sparse(tmp_path / "small.raw", 40 << 20, {}), written(tmp_path / "small.raw"), tmp_path)


def test_file_ends_with_footer_and_one_end_of_stream_sector(tmp_path: Path) -> None:
    data = written(sparse(tmp_path / "disk.raw", 64 << 20, {0: b"x"}))
    assert data[-SECTOR:] == bytes(SECTOR)
    footer, announced = data[-2 * SECTOR : -SECTOR], data[-3 * SECTOR : -2 * SECTOR]
    assert struct.unpack_from("<QII", announced) == (1, 0, vmdk.MARKER_FOOTER)
    assert footer[:4] == data[:4] == b"KDMV"
    assert struct.unpack_from("<Q", data, 56)[0] == vmdk.DIRECTORY_AT_END
    (directory,) = struct.unpack_from("<Q", footer, 56)
    (table,) = struct.unpack_from("<I", data, directory * SECTOR)
    (grain,) = struct.unpack_from("<I", data, table * SECTOR)
    lba, size = struct.unpack_from("<QI", data, grain * SECTOR)
    assert lba == 0
    assert zlib.decompress(data[grain * SECTOR + 12 :][:size]) == b"x".ljust(GRAIN, b"\0")


def test_populated_counts_grains_with_data(tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk.raw", 64 << 20, {0: b"x", 10 * GRAIN: b"y", 20 * GRAIN: bytes(GRAIN)})
    assert write_vmdk(disk, BytesIO(), level=5).populated == 2 * GRAIN


def test_disk_that_is_no_multiple_of_a_sector(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"x" * 700)
    with pytest.raises(ValueError, match="700 bytes"):
        write_vmdk(tmp_path / "disk.raw", BytesIO(), level=5)


def test_disk_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    disk = sparse(tmp_path / "disk.raw", 1 << 20, {0: b"x" * (1 << 20)})
    with disk.open("rb") as file:
        disk.write_bytes(b"x" * 1000)
        with pytest.raises(OSError, match="the disk ends at byte 1000"):
            read_range(file.fileno(), 0, 1 << 20)


def test_sink_that_is_full_ends_it(tmp_path: Path) -> None:
    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(28, f"No space left on device for {len(data)} bytes")

    disk = sparse(tmp_path / "disk.raw", 1 << 20, {0: b"x"})
    with pytest.raises(OSError, match="No space left"):
        write_vmdk(disk, Full(), level=5)
