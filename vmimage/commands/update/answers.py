"""What upstream answers: versions, and SHA-256 digests. Pure; whatever comes is a digest or version, or refused."""

from __future__ import annotations

import re

from vmimage.commands.update.version import Version, version_of
from vmimage.util.json_file import parse_json
from vmimage.util.location import UnavailableError

MOST_SHOWN = 60
_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
_LINE = re.compile(r"(?P<digest>[0-9A-Fa-f]{64}) [ *](?P<name>\S+)")


def published_version(text: str, channel: str | None) -> Version:
    """Return the version in an answer.

    Args:
        channel: The answer lists channels, as the channel server of k3s does: take this one.

    Raises:
        UnavailableError: There is none.
    """
    if channel:
        found = _of_channel(text, channel)
    elif text.lstrip().startswith("{"):
        found = _of_release(text)
    else:
        found = text.removesuffix("\n").removesuffix("\r")
    version = version_of(found)
    if not version:
        raise UnavailableError(f"answers {shown(found)}, which is no version")
    return version


def _of_channel(text: str, channel: str) -> str:
    """Read `{"data": [{"name": "stable", "latest": "v1.36.4+k3s1"}]}`."""
    listed = _json(text).get("data")
    channels = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    found = [each.get("latest") for each in channels if channel in (each.get("name"), each.get("id"))]
    if not found:
        raise UnavailableError(f"lists no channel {shown(channel)}")
    if len(found) > 1 or not isinstance(found[0], str):
        raise UnavailableError(f"lists the channel {shown(channel)} without a version, or twice")
    return found[0]


def _of_release(text: str) -> str:
    """Read a release of GitHub's API: `{"tag_name": "v4.3.1", "prerelease": false, "draft": false}`."""
    release = _json(text)
    tag = release.get("tag_name")
    if not isinstance(tag, str):
        raise UnavailableError("is no release: it has no tag_name")
    if release.get("prerelease") or release.get("draft"):
        raise UnavailableError(f"answers {shown(tag)}, which is a draft or a pre-release")
    return tag


def _json(text: str) -> dict[str, object]:
    try:
        found = parse_json(text.encode())
    except ValueError as error:
        raise UnavailableError(str(error)) from None
    if not isinstance(found, dict):
        raise UnavailableError("is JSON of another form")
    return found


def published_digest(text: str, name: str) -> str:
    """Return the SHA-256 of a file, in hex, from an answer: `SHA256  FILE` lines, or nothing but the digest.

    Args:
        name: Of the file, as upstream names it.

    Raises:
        UnavailableError: There is none, or there are two.
    """
    if _DIGEST.fullmatch(text.strip()):
        return text.strip().lower()
    lines = [_LINE.fullmatch(line.rstrip("\r")) for line in text.rstrip("\n").split("\n")]
    known = [(line["name"].removeprefix("./"), line["digest"].lower()) for line in lines if line]
    if not known:
        raise UnavailableError(f"answers {shown(text)}, which is no list of SHA-256 digests")
    if not all(lines):
        raise UnavailableError("has lines that are no SHA-256 and name: it may be damaged")
    found = {digest for other, digest in known if other == name}
    if not found:
        raise UnavailableError(f"has no SHA-256 of {name}, only of {shown(known[0][0])}{_more(len(known) - 1)}")
    if len(found) > 1:
        raise UnavailableError(f"has two SHA-256 of {name}")
    return found.pop()


def _more(count: int) -> str:
    return f" and {count} more" if count else ""


def shown(text: str) -> str:
    """Return the start of what came, for an error; its control characters are escaped."""
    return ascii(text[:MOST_SHOWN]) + ("…" if len(text) > MOST_SHOWN else "")
