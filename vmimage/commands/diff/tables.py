"""The answer of `invoke diff` for people, as text or as Markdown; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmimage.commands.diff.compare import FileChange, FileFacts
from vmimage.stages.release.changes import VersionChange
from vmimage.util.markdown import code, one_line

Row = tuple[str, ...]
DIGEST = 12
"""Hex digits of a digest that are shown to people."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table.

    Attributes:
        left_out: Rows that are not shown.
        none: What stands there instead of a table without rows.
    """

    title: str
    columns: Row
    rows: Sequence[Row]
    left_out: int = 0
    none: str = "no difference"


def version_section(what: str, changes: Sequence[VersionChange], limit: int, *, urgency: bool) -> Section:
    """Return the table of packages or pins.

    Args:
        limit: Rows that are shown.
    """
    rows = [
        (each.change, each.name, each.before or "-", each.after or "-", *((each.urgency or "-",) if urgency else ()))
        for each in changes[:limit]
    ]
    return Section(
        title=f"{what}{counted(Counter(each.change for each in changes))}",
        columns=("", "name", "A", "B", *(("urgency",) if urgency else ())),
        rows=rows,
        left_out=len(changes) - len(rows),
    )


def file_row(change: FileChange) -> Row:
    """Return the row of a file: of one that changed, what differs."""
    return change.change, change.path, *(_told(side, change) for side in (change.before, change.after))


def _told(facts: FileFacts | None, change: FileChange) -> str:
    if not facts:
        return "-"
    told = {
        "kind": facts.kind,
        "mode": f"mode {facts.mode}",
        "owner": f"owner {facts.owner}",
        "size": f"{facts.size} bytes" if facts.kind == "file" else "",
        "sha256": f"sha256 {facts.sha256[:DIGEST]}" if facts.sha256 else "",
        "target": f"to {facts.target}" if facts.target else "",
    }
    return ", ".join(text for key, text in told.items() if key in change.differing and text)


def counted(counts: Counter[str]) -> str:
    """Return how many of each change there are: ": 2 changed, 1 added"."""
    told = ", ".join(
        f"{counts[each]} {each}" for each in ("upgraded", "downgraded", "changed", "added", "removed") if counts[each]
    )
    return f": {told}" if told else ""


def as_text(sections: Sequence[Section]) -> Iterator[str]:
    """Yield lines for a terminal."""
    for section in sections:
        yield f"\n{section.title}"
        if not section.rows:
            yield f"  {section.none}"
            continue
        # A cell is a line, whatever stands in it.
        table = [[one_line(cell) for cell in row] for row in (section.columns, *section.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield f"  {'  '.join(cells)}".rstrip()
        if section.left_out:
            yield f"  and {section.left_out} more: --limit 0 shows all"


def as_markdown(sections: Sequence[Section]) -> Iterator[str]:
    """Yield lines of Markdown as GitHub and others have it; what images say is no markup there, no link, no mention."""
    for section in sections:
        yield f"### {section.title}"
        yield ""
        if not section.rows:
            yield section.none
        else:
            yield f"| {' | '.join(section.columns)} |"
            yield f"|{'---|' * len(section.columns)}"
            for row in section.rows:
                yield f"| {' | '.join(code(cell) for cell in row)} |"
        if section.left_out:
            yield ""
            yield f"and {section.left_out} more: `--limit 0` shows all"
        yield ""
