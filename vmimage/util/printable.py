"""Text as it is shown to people: no terminal takes it for a command, and it tells no credentials."""

from __future__ import annotations

from vmimage.util.masking import masked


def printable(text: str) -> str:
    """Return a text whose control characters are shown as `\\x1b` is; lines and tabs stay as they are.

    So are the marks that turn the direction of writing, and bytes that are no UTF-8 (surrogates, see os.fsdecode).
    URLs have no user, password or query.
    """
    text = masked(text)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t\u00a0" else _shown(each) for each in text)


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 - the byte that it stands for
        code -= 0xDC00
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004
