"""What the cluster, a file, helm or an archive says, as it is shown to people: no terminal takes it for a command.

The host's tool shows the same way (vmimage/util/printable.py), which cannot be imported in the machine; a test compares
the two.
"""

from __future__ import annotations

MOST_SHOWN = 16_000
"""Characters of one message; what is left out is counted."""


def printable(text: str) -> str:
    """Return a text whose control characters are shown as `\\x1b` is; lines and tabs stay as they are.

    So are the marks that turn the direction of writing, and bytes that are no UTF-8 (surrogates, see os.fsdecode).
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t\u00a0" else _shown(each) for each in text)


def shortened(text: str, most: int = MOST_SHOWN) -> str:
    """Return a text of bounded length: its beginning and its end, and how much is left out between them."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters …]\n{text[-half:]}"


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 - the byte that it stands for
        code -= 0xDC00
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004
