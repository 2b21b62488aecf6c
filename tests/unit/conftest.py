"""What unit tests may not do: start a program, or reach another machine. Those that do are in tests/host.

Hypothesis tries few examples; `invoke fuzz` tries many.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

FUZZ_MINUTES = float(os.environ.get("VMIMAGE_FUZZ_MINUTES", "0"))
MOST_EXAMPLES = 10_000
"""That a test tries within its time limit."""
EXAMPLES = min(int(25 + 400 * FUZZ_MINUTES), MOST_EXAMPLES)
settings.register_profile("unit", max_examples=EXAMPLES, deadline=None)
# The tests of this folder are imported after this file.
settings.load_profile("unit")

STARTS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.system", "pty.spawn")
_seen: list[str] | None = None


def _notice(event: str, args: tuple[object, ...]) -> None:
    if _seen is None:
        return
    if event in STARTS:
        _seen.append(f"{event}: {args[:2]}")
    elif (
        event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1", "localhost")
    ):
        _seen.append(f"{event}: {args[1]}")


# A hook of this kind cannot be taken away again.
sys.addaudithook(_notice)


@pytest.fixture(autouse=True)
def _by_itself() -> Iterator[None]:
    """Fail a test that does."""
    global _seen  # noqa: PLW0603 - the hook has no other way to know
    _seen = []
    yield
    seen, _seen = _seen, None
    assert not seen, "this belongs into tests/host"
