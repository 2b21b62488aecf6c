"""Texts for Hypothesis."""

from __future__ import annotations

import sys

from hypothesis import strategies as st


def any_text(max_size: int | None = None) -> st.SearchStrategy[str]:
    """Return texts of any characters, half of them of the first 768, among which all are that a terminal obeys.

    Unlike `st.text()`, it has surrogates, and needs no table of all characters, which takes a second to make.
    """
    characters = st.one_of(st.integers(0, 0x2FF), st.integers(0, sys.maxunicode)).map(chr)
    return st.lists(characters, max_size=max_size).map("".join)
