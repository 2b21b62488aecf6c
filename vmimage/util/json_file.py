"""JSON files of unknown origin: bounded, read without following links, and strictly JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from vmimage.util.files import read_regular


def read_json(path: Path, most: int) -> object:
    """Read a JSON file.

    Args:
        most: Bytes that it may have.

    Raises:
        ValueError: It cannot be read, is none, or is too large or too deep, with the reason.
    """
    try:
        return parse_json(read_regular(path, most))
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error


def parse_json(data: bytes) -> object:
    """Parse JSON; numbers without an end, doubled keys, and what is too deep for Python are refused.

    Raises:
        ValueError: With the reason.
    """
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_number
        )
    except RecursionError:
        raise ValueError("no JSON that can be read: it is too deep") from None
    except UnicodeDecodeError:
        raise ValueError("no JSON: it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from None


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it gives {twice[:40]!r} twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number
