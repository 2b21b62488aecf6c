"""Answers of slow questions to this host, remembered in the cache until what was asked changes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from vmimage.util.files import written_beside
from vmimage.util.json_file import read_json
from vmimage.util.masking import masked

MOST_BYTES = 1 << 20


class Memo:
    """A JSON file of answers, each with the stamp under which it holds."""

    def __init__(self, path: Path | None = None) -> None:
        """
        Args:
            path: Where it is kept; nothing is remembered when not given.
        """
        self._path = path
        self._answers: dict[str, list[object]] = {}
        with contextlib.suppress(OSError, ValueError):
            found = read_json(path, MOST_BYTES) if path else {}
            self._answers = found if isinstance(found, dict) else {}

    def get(self, question: str, stamp: object, ask: Callable[[], object]) -> object:
        """Return the answer of a question; asked anew when its stamp is another than before."""
        known = self._answers.get(question)
        if isinstance(known, list) and len(known) == 2 and known[0] == stamp:  # noqa: PLR2004 - stamp and answer
            return known[1]
        answer = ask()
        # One with credentials is not kept, and none that says nothing: next time there may be one.
        if self._path and answer and masked(str(answer)) == str(answer):
            self._answers[question] = [stamp, answer]
            # Without it the next run asks again.
            with contextlib.suppress(OSError), written_beside(self._path, mode=0o600) as beside:
                beside.write_text(json.dumps(self._answers))
        return answer


def stamps(paths: Iterable[Path]) -> list[list[object]]:
    """Return path, size and time of change of files; what is not there does not count."""
    found: list[list[object]] = []
    for path in paths:
        with contextlib.suppress(OSError):
            state = path.stat()
            found.append([str(path), state.st_size, state.st_mtime_ns])
    return found
