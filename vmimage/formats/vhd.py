"""VHD of fixed size, as Azure takes it: the raw disk with a footer behind it, a whole number of MiB.

Source of the footer: Microsoft, "Virtual Hard Disk Image Format Specification" (2006); of what Azure wants: "Prepare a
Windows VHD or VHDX to upload to Azure". The same disk and appliance always give the same bytes.
"""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

from vmimage.formats.format import Appliance, Format, NoOptions, Opened, require_size
from vmimage.util.run import run

SECTOR = 512
MIB = 1 << 20
COOKIE = b"conectix"
FIXED = 2
NO_OFFSET = 0xFFFF_FFFF_FFFF_FFFF
# Readers, QEMU's among them, take the size from the footer for some creators, and for others what its geometry of
# cylinders comes to. This is QEMU's word for "the size is meant"; the geometry is then the largest that there is.
CREATOR = b"qem2"
GEOMETRY = (65535, 16, 255)
FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
"""Cookie, features, version, offset, time, creator, its version, its system, original and current size, cylinders,
heads, sectors, type, checksum, identifier, saved state."""
CHECKSUM_AT = 64
NAMESPACE = uuid.UUID("0d6a8f0e-1c0b-5f3e-9a57-6f2b0c4d7e11")


def footer(size: int, identity: uuid.UUID) -> bytes:
    """Return the footer of a disk of a size in bytes."""
    values = (COOKIE, 2, 0x10000, NO_OFFSET, 0, CREATOR, 0x10000, b"Wi2k", size, size, *GEOMETRY, FIXED)
    blank = FOOTER.pack(*values, 0, identity.bytes, 0)
    return FOOTER.pack(*values, checksum(blank), identity.bytes, 0)


def checksum(data: bytes) -> int:
    """Return the checksum of a footer; its own place counts as zero."""
    counted = data[:CHECKSUM_AT] + bytes(4) + data[CHECKSUM_AT + 4 :]
    return ~sum(counted) & 0xFFFF_FFFF


def write_vhd(disk: Path, to: Path, appliance: Appliance) -> None:
    """Write a raw disk as a VHD.

    Raises:
        BuildError, OSError: It could not be written; `to` is then incomplete.
    """
    run(["cp", "--sparse=always", disk, to])
    with to.open("r+b") as file:
        size = -(-disk.stat().st_size // MIB) * MIB
        file.truncate(size)
        file.seek(size)
        file.write(footer(size, uuid.uuid5(NAMESPACE, f"{appliance.name} {appliance.version}")))


def check_vhd(path: Path) -> None:
    """Check what Azure relies on.

    Raises:
        ValueError: With the reason why the file is refused.
    """
    if not path.is_file():
        raise ValueError("it is no regular file")
    size = path.stat().st_size - SECTOR
    if size <= 0:
        raise ValueError("it is too short for a VHD")
    require_size(size)
    with path.open("rb") as file:
        # QEMU looks there first, and would then read a dynamic one.
        if file.read(len(COOKIE)) == COOKIE:
            raise ValueError("it begins with a footer, too, and would be read as another disk than its end tells")
        file.seek(size)
        data = file.read(SECTOR)
    cookie, _, _, offset, _, _, _, _, _, current, _, _, _, kind, told, _, _ = FOOTER.unpack(data)
    if cookie != COOKIE:
        raise ValueError("it has no footer of a VHD")
    if told != checksum(data):
        raise ValueError("the checksum of its footer is wrong")
    if kind != FIXED or offset != NO_OFFSET:
        raise ValueError("it is no VHD of fixed size")
    if current != size or size % MIB:
        raise ValueError(f"its footer speaks of {current} bytes, and {size} are there; Azure wants whole MiB")


def _write(disk: Path, to: Path, _options: NoOptions, appliance: Appliance) -> None:
    write_vhd(disk, to, appliance)


def _open(path: Path, _: Path) -> Opened:
    check_vhd(path)
    return Opened(path=path, format="vpc")


VHD = Format(
    name="vhd",
    summary="Azure (fixed size)",
    options=NoOptions,
    machines=(("hyperv", "bios"),),
    machines_told="IDE + Tulip (BIOS)",
    taken_by="compared by QEMU; not tried in Azure",
    write=_write,
    open=_open,
    compressor="none",
    usage="Azure, a machine of generation 1: `az disk create --upload-type Upload --os-type Linux`, then `azcopy copy "
    "{file}` to where that leads. As large as the disk: copy it sparsely.",
)
