"""What is true of all locations that may hold a file: each may fail, and what it serves is bounded."""

from __future__ import annotations

from collections.abc import Callable

from vmimage.util.console import human_bytes

MORE_BYTES = "; `bytes:` of the pin in images.yaml allows more"

Progress = Callable[[int, int | None], None]


class UnavailableError(Exception):
    """A location did not serve the file; the text says why."""


def require_size(size: int, most_bytes: int, *, way_out: str = MORE_BYTES) -> None:
    """Refuse a file that is too large.

    Args:
        way_out: What allows more.

    Raises:
        UnavailableError: It is.
    """
    if size > most_bytes:
        raise UnavailableError(f"is larger than {human_bytes(most_bytes)} ({most_bytes} bytes){way_out}")
