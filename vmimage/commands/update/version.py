"""Versions of pins as upstream writes them, and which of two is newer."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(
    r"v?(?P<numbers>(?:0|[1-9][0-9]{0,8})(?:\.(?:0|[1-9][0-9]{0,8})){1,3})"
    r"(?:-(?P<pre>[0-9A-Za-z.-]{1,40}))?(?:\+(?P<build>[0-9A-Za-z.-]{1,40}))?"
)
Key = tuple[object, ...]


@dataclass(frozen=True)
class Version:
    """A version such as v1.36.4+k3s1 or v4.0.0-rc.1.

    Attributes:
        minor: Its first two numbers.
        pre: Of a pre-release, what says so: rc.1.
        order: Sorts versions. Unlike in Semantic Versioning, what is behind the + counts: +k3s2 comes after +k3s1.
    """

    text: str
    minor: tuple[int, int]
    pre: str
    order: Key


def version_of(text: str) -> Version | None:
    """Read a version; none if the text is of another form."""
    found = _FORM.fullmatch(text)
    if not found:
        return None
    numbers = tuple(map(int, found["numbers"].split(".")))
    pre, build = found["pre"] or "", found["build"] or ""
    order = ((*numbers, 0, 0)[:4], not pre, _natural(pre), _natural(build))
    return Version(text, (numbers[0], numbers[1]), pre, order)


def _natural(text: str) -> Key:
    """Return a key by which rc9 stands before rc10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"[0-9]+|[^0-9]+", text))


def minors_apart(one: Version, other: Version) -> int:
    """Return how many minor versions lie between two versions; many if they are of different major ones."""
    return abs(one.minor[1] - other.minor[1]) if one.minor[0] == other.minor[0] else 1000
