"""What dpkg's files in an image say: which packages are installed, and how urgent their changes are."""

from __future__ import annotations

import io
import logging
import re
import zlib
from collections.abc import Iterator

from debian.changelog import Changelog
from debian.deb822 import Deb822
from debian.debian_support import NativeVersion as Version

from vmimage.disk.ext4 import Tree
from vmimage.util.errors import VerifyError

STATUS = "/var/lib/dpkg/status"
MOST_STATUS_BYTES = 64 << 20
MOST_CHANGELOG_BYTES = 1 << 20
"""Of the newest entries of a changelog, unpacked; older ones are not read."""
MOST_ENTRIES = 500

NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,199}")
VERSION = re.compile(r"(?:[0-9]{1,9}:[A-Za-z0-9.+~:-]{1,190}|[A-Za-z0-9.+~-]{1,200})")
"""A colon is behind an epoch, see deb-version(7): python-debian refuses any other."""
ARCHITECTURE = re.compile(r"[a-z0-9-]{1,40}")
INSTALLED = ("installed", "half-configured", "unpacked", "triggers-awaited", "triggers-pending")
"""States in which the files of a package are there, see dpkg(1)."""
URGENCIES = ("low", "medium", "high", "emergency", "critical")
"""In their order, see Debian's policy 5.6.17."""
UNKNOWN = "unknown"

# It tells of every line that it does not understand.
logging.getLogger("debian").addHandler(logging.NullHandler())


def parse_status(data: bytes) -> dict[str, str]:
    """Return package -> version of what is installed, by dpkg's status file; pure.

    A package of another architecture than dpkg's own has the name NAME:ARCHITECTURE.

    Raises:
        VerifyError: It is none, with the reason.
    """
    found: list[tuple[str, str, str]] = []
    for number, fields in enumerate(_paragraphs(data), start=1):
        name, version, architecture = (fields.get(key, "") for key in ("Package", "Version", "Architecture"))
        if not NAME.fullmatch(name):
            raise VerifyError(f"{STATUS} of the image: entry {number} has no name of a package: {name[:80]!r}")
        if fields.get("Status", "").split(" ")[-1] not in INSTALLED:
            continue
        if not VERSION.fullmatch(version) or not ARCHITECTURE.fullmatch(architecture):
            raise VerifyError(f"{STATUS} of the image: {name} has no version and architecture that can be read")
        found.append((name, architecture, version))
    if data.strip() and not found:
        raise VerifyError(f"{STATUS} of the image names no installed package")
    own = next((architecture for name, architecture, _ in found if name == "dpkg"), "")
    packages = {n if a in ("all", own) or not own else f"{n}:{a}": v for n, a, v in found}
    if len(packages) < len(found):
        raise VerifyError(f"{STATUS} of the image names a package twice")
    return packages


def _paragraphs(data: bytes) -> Iterator[Deb822]:
    fields = ["Package", "Status", "Version", "Architecture"]
    try:
        # Not every package keeps to UTF-8, and python-debian would guess what else it is.
        text = data.decode(errors="replace").encode()
        yield from Deb822.iter_paragraphs(io.BytesIO(text), fields=fields)
    except ValueError as error:
        raise VerifyError(f"{STATUS} of the image cannot be read: {error}") from error


def newer(version: str, than: str) -> bool:
    """Tell whether a version is later than another, as dpkg orders them; False if one of them is no version."""
    try:
        return bool(Version(version) > Version(than))
    except ValueError:
        return False


def urgency(tree: Tree, package: str, old: str, new: str) -> str:
    """Return the highest urgency of the changes from one version to a later one, by the later image's changelog.

    Returns:
        One of URGENCIES; UNKNOWN where the image has no changelog that tells.
    """
    folder = f"/usr/share/doc/{package.partition(':')[0]}"
    # The changelog of a package that is Debian's own has the other name, see Debian's policy 12.7.
    names = ("changelog.Debian.gz", *(() if "-" in new else ("changelog.gz",)))
    for path in (f"{folder}/{name}" for name in names):
        if path in tree.nodes:
            try:
                return highest_urgency(_unpacked(tree.read(path)), old, new)
            except VerifyError:
                return UNKNOWN
    return UNKNOWN


def highest_urgency(changelog: bytes, old: str, new: str) -> str:
    """Return the highest urgency of the entries after one version up to another; pure."""
    try:
        entries = Changelog(changelog, max_blocks=MOST_ENTRIES, allow_empty_author=True)
    except ValueError:
        return UNKNOWN
    said = [
        # "high (security fixes)" is high.
        str(entry.urgency).lower().split(" ")[0]
        for entry in entries
        if newer(str(entry.version), old) and not newer(str(entry.version), new)
    ]
    return max((each for each in said if each in URGENCIES), key=URGENCIES.index, default=UNKNOWN)


def _unpacked(data: bytes) -> bytes:
    """Return the beginning of a gzip file; whole entries of a changelog, the newest first."""
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(data, MOST_CHANGELOG_BYTES)
    except zlib.error:
        return b""
