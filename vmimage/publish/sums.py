"""SHA256SUMS of a release, and its files: what was signed, and whether they are that."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from vmimage.publish import AGAIN
from vmimage.util.errors import VerifyError
from vmimage.util.files import open_regular, read_regular

SUMS = "SHA256SUMS"
MOST_SUMS = 1 << 20
MOST_OTHER = 256 << 20
"""Bytes of a file whose size no manifest tells."""
LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._+-]{0,199})")


def read_file(path: Path, most: int) -> bytes:
    """Return what a file of a release holds: it is a file, no link, and bounded.

    Raises:
        VerifyError: It is none of this, with the reason.
    """
    try:
        return read_regular(path, most)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def parse_sums(data: bytes) -> dict[str, str]:
    """Read SHA256SUMS: name -> SHA-256.

    Raises:
        VerifyError: It is none, with the line.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(data.decode(errors="replace").removesuffix("\n").split("\n"), 1):
        match = LINE.fullmatch(line)
        if not match or match[2] in found:
            why = "a name that stands twice" if match else "no digest and name"
            raise VerifyError(f"{SUMS}:{number}: {why}", hint=AGAIN)
        found[match[2]] = match[1]
    return found


def require_digest(path: Path, wanted: str, size: int | None) -> None:
    """Check that a file has a digest.

    Args:
        size: Bytes that it has; MOST_OTHER at most when not given.

    Raises:
        VerifyError: It has not, or is a link, a pipe, or of another size.
    """
    try:
        with open_regular(path) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size if size is not None else found > MOST_OTHER:
                bound = f"not {size}" if size is not None else f"more than {MOST_OTHER}"
                raise VerifyError(
                    f"{path} has {found} bytes, {bound}: it is not the file that {SUMS} speaks of", hint=AGAIN
                )
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    require_same(path, wanted, digest)


def require_same(path: Path, wanted: str, found: str) -> None:
    """Check that the digest of a file is the one that SHA256SUMS tells.

    Raises:
        VerifyError: It is not.
    """
    if found != wanted:
        raise VerifyError(
            f"{path} is not the file that {SUMS} speaks of\n    {SUMS} says {wanted}\n    found           {found}",
            hint=AGAIN,
        )


def require_files(folder: Path, sums: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Check all files of a release.

    Raises:
        VerifyError: One is missing or not the one that SHA256SUMS speaks of.
    """
    for name, digest in sums.items():
        require_digest(folder / name, digest, sizes.get(name))


def _unreadable(path: Path, error: OSError | ValueError) -> VerifyError:
    if isinstance(error, OSError) and error.errno == errno.ENOENT:
        return VerifyError(f"{path} is missing", hint=AGAIN)
    return VerifyError(f"{path}: {error.strerror if isinstance(error, OSError) else error}", hint=AGAIN)
