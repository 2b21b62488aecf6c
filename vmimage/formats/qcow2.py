"""qcow2, by qemu-img."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

from pydantic import Field

from vmimage.formats.format import Appliance, Format, Opened, checked
from vmimage.util.model import Model
from vmimage.util.run import run

CLUSTER = 256 << 10
"""Bytes that are compressed by themselves, and decompressed whole for every small read of the guest.

Measured: against qemu-img's default of 64 KiB the file is 4 % smaller, and what a boot reads takes 0.4 s more (0.2 s
with 128 KiB, 1 s with 512 KiB).
"""

ZSTD_LEVEL = 3
"""zstd's own default: QEMU sets none (block/qcow2-threads.c)."""

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQIIQ")
"""Magic, version, backing file's offset and size, cluster bits, virtual size."""


def write_qcow2(disk: Path, to: Path, *, compression: str) -> None:
    """Write a raw disk as a compressed qcow2.

    Without `-W` (writes out of order) the same disk gives the same bytes.

    Args:
        compression: zstd or zlib.

    Raises:
        BuildError: qemu-img failed.
    """
    options = f"compression_type={compression},cluster_size={CLUSTER}"
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options, disk, to])


def virtual_size(head: bytes) -> int:
    """Return the size in bytes of the disk in a qcow2, from its header.

    Raises:
        ValueError: It is no qcow2.
    """
    return _header(head)[-1]


def cluster_size(head: bytes) -> int:
    """Return the bytes of a cluster of a qcow2, from its header.

    Raises:
        ValueError: It is no qcow2.
    """
    return 1 << _header(head)[-2]


def _header(head: bytes) -> tuple[int, ...]:
    """Source: https://github.com/qemu/qemu/blob/master/docs/interop/qcow2.rst"""
    if head[:4] != MAGIC or len(head) < HEADER.size:
        raise ValueError("it is no qcow2")
    return HEADER.unpack(head[: HEADER.size])


class Qcow2Options(Model):
    """Options of the formats whose disk is a qcow2."""

    compression: Literal["zstd", "zlib"] = Field("zstd", description="zlib opens in QEMU older than 5.1 too")


def _write(disk: Path, to: Path, options: Qcow2Options, _: Appliance) -> None:
    write_qcow2(disk, to, compression=options.compression)


QCOW2 = Format(
    name="qcow2",
    summary="QEMU, libvirt, UTM",
    options=Qcow2Options,
    machines=(("virtio", "uefi"), ("virtio", "bios"), ("virtio-scsi", "bios"), ("q35-sata", "uefi")),
    machines_told="virtio (UEFI, BIOS), virtio-scsi (BIOS), SATA + e1000e (UEFI)",
    taken_by="QEMU, which is the program",
    write=_write,
    open=lambda path, _: checked(Opened(path=path, format="qcow2")),
    compressor="zstd",
)
