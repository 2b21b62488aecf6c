"""Debian's packages as they were at a moment: https://snapshot.debian.org/ keeps all that the archive ever had."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from vmimage.util.errors import InputError
from vmimage.util.masking import masked

ARCHIVE = "https://snapshot.debian.org/archive"
FIRST = datetime(2005, 3, 12, tzinfo=UTC)
"""The archive begins here."""
WITHOUT_UPDATES = ("sid", "unstable", "experimental")

# [OPTIONS] URL, as in a line of sources.list.
_PLACE = re.compile(r"(?:\[(?P<options>[^]\n]*)\]\s+)?(?P<url>https?://[^\s/][^\s]*|file:///[^\s]+)")


def require_past(moment: datetime, today: date) -> None:
    """Check that a moment is one at which the archive can be known.

    Raises:
        InputError: It is not over, or before the archive's first.
    """
    # Today's may still be in the making, in a time zone that is ahead.
    if not FIRST.date() <= moment.date() <= today + timedelta(days=1):
        raise InputError(
            f"snapshot: {moment:%Y-%m-%dT%H:%M:%SZ} is no moment of which there is a snapshot",
            hint=f"from {FIRST:%Y-%m-%d} to today; `refresh:` instead takes what the mirror has",
        )


def stamp(moment: datetime) -> str:
    """Return a moment as the archive writes it: 20261125T000000Z."""
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def snapshot_lines(moment: datetime, suite: str, archive: str = "") -> list[str]:
    """Return the lines for sources.list that take a suite as it was; pure.

    Args:
        archive: URL of a folder with `debian` and `debian-security`, in which folders are named by `stamp`; may begin
            with apt's [OPTIONS]. Debian's own when not given.

    Raises:
        InputError: It is none.
    """
    place = _PLACE.fullmatch((archive or ARCHIVE).strip())
    if not place or not archive.isprintable():
        raise InputError(
            f"VMIMAGE_SNAPSHOT={masked(archive)!r} is no URL",
            hint=f"like {ARCHIVE}: a folder with debian/ and debian-security/; apt's [OPTIONS] may stand before it",
        )
    # What was published then has expired since.
    options = " ".join(filter(None, ("check-valid-until=no", (place["options"] or "").strip())))
    scheme, _, rest = place["url"].rstrip("/").partition(":")
    # With `file`, apt would have dpkg open the packages where they are, which inside the new root they are not.
    url = f"{'copy' if scheme == 'file' else scheme}:{rest.removeprefix('//') if scheme == 'file' else rest}"
    when = stamp(moment)
    main, security = (f"deb [{options}] {url}/{name}/{when}/" for name in ("debian", "debian-security"))
    if suite in WITHOUT_UPDATES:
        return [f"{main} {suite} main"]
    return [f"{main} {suite} main", f"{main} {suite}-updates main", f"{security} {suite}-security main"]
