"""Credentials in URLs, hidden wherever text leaves: logs, terminals, JSON, keys, manifests.

Texts are others' words as often as ours (apt, pip, requests), so URLs are found in the text, not handed over as such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

MASK = "***"

Value = TypeVar("Value")

# Texts may be long and made to be slow: each repetition is bounded, or ends where another match may begin.
_SCHEME = r"[a-z][a-z0-9+.-]{0,30}://"
# What stands before the @ of a URL's host. A password with an unencoded slash makes its start look like a host, behind
# which no port comes: all up to the last @ is hidden then.
_USER = re.compile(
    rf"""(?P<scheme>{_SCHEME})
        (?: [^\s/?\#]*@ | [^\s/?\#@]*:(?!\d*(?:[^\w%]|$))(?:(?!://)\S)*@ )""",
    re.IGNORECASE | re.VERBOSE,
)
# Of a proxy, say, whose scheme may be left out.
_USER_WITHOUT_SCHEME = re.compile(r"""(?<![\w/:@*.~%+-])[\w.~%+-]+:[^\s/@:"']+@(?=[\w\[])""")
_QUERY = re.compile(rf"""(?P<path>{_SCHEME}(?:(?!://)[^\s?\#"'<>])*+)\?[^\s"'<>]+""", re.IGNORECASE)
# As urllib3 tells what it asked for.
_QUERY_OF_PATH = re.compile(r"""(?P<path>with url: [^\s?]*)\?[^\s"'<>]+""")


def masked(text: str) -> str:
    """Return a text in which the URLs have no user, password or query: `https://***@host/path?***`."""
    if "@" not in text and "?" not in text:
        return text
    text = _USER.sub(rf"\g<scheme>{MASK}@", text)
    text = _USER_WITHOUT_SCHEME.sub(f"{MASK}@", text)
    for query in (_QUERY, _QUERY_OF_PATH):
        text = query.sub(rf"\g<path>?{MASK}", text)
    return text


def masked_argument(text: str) -> str:
    """Return an argument of a command with its URLs masked, also those that are none: a password may have spaces."""
    before, scheme, rest = text.partition("://")
    if not scheme or "deb " in before or "@" not in rest:
        return masked(text)
    return masked(f"{before}://{MASK}@{rest.rpartition('@')[2]}")


def masked_data(value: Value) -> Value:
    """Return JSON-like data with all its texts masked."""
    found: object = value
    if isinstance(value, str):
        found = masked(value)
    elif isinstance(value, Mapping):
        found = {key: masked_data(each) for key, each in value.items()}
    elif isinstance(value, (list, tuple)):
        found = [masked_data(each) for each in value]
    return found  # type: ignore[return-value]  # of the same kind
