"""The two kinds of firmware that a machine may start with."""

from typing import Literal

FirmwareName = Literal["bios", "uefi"]
FIRMWARES: tuple[FirmwareName, ...] = ("bios", "uefi")
