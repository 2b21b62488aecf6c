"""The name of a release: YYYYMMDD-KEY, or YYYYMMDD-KEY.SERIAL where that day's inputs gave other bytes once more."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from vmimage.util.errors import HostError

KEY_LENGTH = 8
MOST_SERIAL = 999
_DAY = r"[0-9]{8}"
_KEY = rf"[0-9a-f]{{{KEY_LENGTH}}}"
_SERIAL = r"[2-9]|[1-9][0-9]{1,2}"
_VERSION = rf"{_DAY}-{_KEY}(?:\.(?:{_SERIAL}))?"
_PARTS = re.compile(rf"(?P<day>{_DAY})-(?P<key>{_KEY})(?:\.(?P<serial>{_SERIAL}))?")
LATEST = "latest"
_LEFT = re.compile(rf"\.(?:{LATEST}|{_VERSION})-[0-9a-f]{{8}}")


def version_of(export_key: str, today: date) -> str:
    """Return the version of a new release: the day, and the key of its inputs."""
    return f"{today:%Y%m%d}-{export_key[:KEY_LENGTH]}"


def is_version(name: str) -> bool:
    """Tell whether a name is that of a release."""
    return bool(_PARTS.fullmatch(name))


def is_left(name: str) -> bool:
    """Tell whether a name is that of what a killed release leaves: a work folder, or a link."""
    return bool(_LEFT.fullmatch(name))


def is_of_key(version: str, export_key: str) -> bool:
    """Tell whether a version is of the inputs with this key."""
    found = _PARTS.fullmatch(version)
    return bool(found) and found["key"] == export_key[:KEY_LENGTH]  # type: ignore[index]


def order(version: str) -> tuple[str, int, str]:
    """Return what versions sort by: the day, then the serial (.10 comes after .9), then the key."""
    found = _PARTS.fullmatch(version)
    assert found  # noqa: S101 - `is_version` holds
    return found["day"], int(found["serial"] or 1), found["key"]


def free_version(image_folder: Path, wanted: str) -> str:
    """Return a version that no release has yet: the one wanted, or the same with the next serial.

    Raises:
        HostError: All are taken.
    """
    taken = {path.name for path in image_folder.iterdir()} if image_folder.is_dir() else set()
    for version in (wanted, *(f"{wanted}.{serial}" for serial in range(2, MOST_SERIAL + 1))):
        if version not in taken:
            return version
    raise HostError(
        f"{image_folder} holds {MOST_SERIAL} releases {wanted} already", hint="remove some of them, the oldest first"
    )
