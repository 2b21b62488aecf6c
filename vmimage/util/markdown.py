"""Texts of unknown origin in Markdown, as GitHub and others have it."""

from __future__ import annotations

import re

from vmimage.util.printable import printable


def code(text: str) -> str:
    """Return a text as Markdown's code for the cell of a table."""
    if not text or text == "-":
        return text
    # Some readers divide a row at each bar, also in code and behind a backslash.
    text = one_line(text).replace("|", "\\x7c")
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    edge = " " if text.startswith("`") or text.endswith("`") or text != text.strip() else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def one_line(text: str) -> str:
    """Return a text as a line that shows all that is in it."""
    return printable(text).replace("\t", "\\x09").replace("\n", "\\x0a")
