"""`invoke diff A B`: what differs between two images or releases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from invoke.exceptions import Exit

from vmimage import host
from vmimage.cache.store import Store
from vmimage.commands.diff.compare import file_changes
from vmimage.commands.diff.contents import Contents, content_sha256, read_contents
from vmimage.commands.diff.deep import deep_report, require_diffoscope
from vmimage.commands.diff.subject import Subject, find_subject
from vmimage.commands.diff.tables import DIGEST, Row, Section, as_markdown, as_text, counted, file_row, version_section
from vmimage.commands.session import session
from vmimage.disk.dpkg import urgency
from vmimage.disk.ext4 import Node
from vmimage.stages.release.changes import VersionChange, version_changes
from vmimage.util.console import Console, Step
from vmimage.util.errors import InputError
from vmimage.util.settings import Options

DIFFERENT = 7
"""The exit code when they differ (README: exit codes)."""
LIMIT = 40
"""Rows of a table that are shown."""
EVERYTHING = 1 << 40


@dataclass(kw_only=True)
class Found:
    """What differs, as far as it is kept: files are counted, and the first of them shown.

    Attributes:
        missing: What is not compared, since an image does not tell.
        nodes: The files of either side that differ, for `--deep`.
    """

    packages: Sequence[VersionChange] = ()
    pins: Sequence[VersionChange] = ()
    boot: tuple[str, str] = ("", "")
    disk_bytes: tuple[int, int] = (0, 0)
    missing: list[str] = field(default_factory=list)
    files: Counter[str] = field(default_factory=Counter)
    rows: list[Row] = field(default_factory=list)
    nodes: tuple[list[Node], list[Node]] = field(default_factory=lambda: ([], []))

    @property
    def same(self) -> bool:
        """Whether nothing differs but the files in which the images are handed out."""
        pairs = (self.boot, self.disk_bytes)
        return not (self.packages or self.pins or self.files.total()) and all(a == b for a, b in pairs)


def tell_difference(
    first: str, second: str, chosen: Options, *, json: bool, markdown: bool, deep: bool, limit: int
) -> None:
    """Print what differs between two images.

    Args:
        limit: Rows of each table that are shown; 0 for all.

    Raises:
        Exit: They differ: exit code 7.
    """
    with session(chosen, json_lines=json) as (console, store):
        if json and markdown:
            raise InputError("--json and --markdown: one of them at a time")
        if limit < 0:
            raise InputError(f"--limit {limit}: no number of rows", hint="0 shows all")
        host.require(("qemu-img", "sfdisk", "mke2fs"))
        if deep:
            require_diffoscope()
        store.sweep()
        subjects = [find_subject(text, chosen.dist, console) for text in (first, second)]
        if not tell(subjects, store, console, limit=limit or EVERYTHING, markdown=markdown, deep=deep):
            raise Exit(code=DIFFERENT)


def tell(
    subjects: Sequence[Subject],
    store: Store,
    console: Console,
    *,
    limit: int,
    markdown: bool = False,
    deep: bool = False,
) -> bool:
    """Compare two images and print what differs; returns whether they are the same."""
    with console.stage("diff", " and ".join(one.name for one in subjects)) as step, store.workspace("diff") as work:
        sides = _read(subjects, work, step)
        step.now("comparing")
        found = compare(subjects, sides, console, limit=limit, keep=deep)
        said = deep_report(list(zip(sides, found.nodes, strict=True)), work / "deep") if deep else ""
        step.outcome = "the same" if found.same else "different"
    for line in lines(subjects, sections_of(subjects, sides, found, limit), found, said, markdown=markdown):
        console.say(line)
    if deep:
        console.event("deep", text=said)
    _tell_machines(subjects, sides, found, console)
    return found.same


def _read(subjects: Sequence[Subject], work: Path, step: Step) -> list[Contents]:
    sides = []
    for folder, subject in zip(("a", "b"), subjects, strict=True):
        step.now(f"reading {subject.name}")
        sides.append(read_contents(subject, work / folder))
    return sides


def compare(
    subjects: Sequence[Subject], sides: Sequence[Contents], console: Console, *, limit: int, keep: bool
) -> Found:
    """Compare two images; an event for each difference.

    Args:
        limit: Rows of files that are kept for the table.
        keep: Keep the nodes that differ.
    """
    old, new = sides
    found = Found(boot=(old.boot, new.boot), disk_bytes=(old.sizes["disk"], new.sizes["disk"]))
    if old.packages is not None and new.packages is not None:
        found.packages = version_changes(
            old.packages, new.packages, lambda name, a, b: urgency(new.changelogs, name, a, b)
        )
    if old.pins is not None and new.pins is not None:
        found.pins = version_changes(old.pins, new.pins)
    found.missing += [
        f"{subject.name} does not tell its {what}: they are not compared"
        for what in ("packages", "pins")
        for subject, side in zip(subjects, sides, strict=True)
        if getattr(side, what) is None
    ]
    for text in found.missing:
        console.warn(text)
    for event, changes in (("package", found.packages), ("pin", found.pins)):
        for each in changes:
            console.event(event, change=each.change, **asdict(each))
    _compare_files(old, new, found, console, limit=limit, keep=keep)
    return found


def _compare_files(old: Contents, new: Contents, found: Found, console: Console, *, limit: int, keep: bool) -> None:
    """Add the files that differ to what was found."""
    with old.disk.open("rb") as one, new.disk.open("rb") as other:
        digests = (lambda node: content_sha256(node, one.fileno()), lambda node: content_sha256(node, other.fileno()))
        for change, before, after in file_changes(old.nodes(), new.nodes(), digests):
            found.files[change.change] += 1
            console.event("file", change=change.change, differing=change.differing, **asdict(change))
            if len(found.rows) < limit:
                found.rows.append(file_row(change))
            for kept, node in zip(found.nodes, (before, after), strict=True):
                if node and keep:
                    kept.append(node)


def sections_of(subjects: Sequence[Subject], sides: Sequence[Contents], found: Found, limit: int) -> list[Section]:
    """Return the tables for people."""
    a, b = ({**subject.sizes, **side.sizes} for subject, side in zip(subjects, sides, strict=True))
    sizes = [
        (name, *("-" if n is None else f"{n:,}" for n in (x, y)), "-" if None in (x, y) else f"{y - x:+,}")  # type: ignore[operator]
        for name in dict.fromkeys([*a, *b])
        for x, y in [(a.get(name), b.get(name))]
    ]
    not_told = {what: any(getattr(side, what) is None for side in sides) for what in ("packages", "pins")}
    boot = [("partition table, boot loader, ESP", *(each[:DIGEST] for each in found.boot))]
    rows = [] if found.boot[0] == found.boot[1] else boot
    made = [
        Section(title="Sizes (bytes)", columns=("", "A", "B", "difference"), rows=sizes),
        version_section("Pins", found.pins, limit, urgency=False),
        version_section("Packages", found.packages, limit, urgency=True),
        Section(title="Outside of the root file system", columns=("", "A: sha256", "B: sha256"), rows=rows),
        Section(
            title=f"Files{counted(found.files)}",
            columns=("", "path", "A", "B"),
            rows=found.rows,
            left_out=found.files.total() - len(found.rows),
        ),
    ]
    leave = {what.capitalize() for what, missing in not_told.items() if missing}
    return [section for section in made if section.title not in leave]


def lines(
    subjects: Sequence[Subject], sections: Sequence[Section], found: Found, deep: str, *, markdown: bool
) -> Iterator[str]:
    """Yield the answer for people."""
    heads = [
        Section(title="Images", columns=("", "image"), rows=[(x, s.name) for x, s in zip("AB", subjects, strict=True)])
    ]
    heads += [Section(title="Not compared", columns=("",), rows=[(text,) for text in found.missing])] * bool(
        found.missing
    )
    yield from (as_markdown if markdown else as_text)([*heads, *sections])
    if deep:
        # Four spaces make code of it in Markdown, whatever it says.
        yield "### diffoscope\n" if markdown else "\ndiffoscope"
        yield from (f"    {line}" for line in deep.splitlines())
    yield "\nThe images are the same." if found.same else "\nThe images differ."


def _tell_machines(subjects: Sequence[Subject], sides: Sequence[Contents], found: Found, console: Console) -> None:
    counts = {
        what: dict(Counter(each.change for each in changes))
        for what, changes in (("packages", found.packages), ("pins", found.pins))
    }
    console.event(
        "result",
        same=found.same,
        images=[
            {"name": subject.name, "sizes": {**subject.sizes, **side.sizes}, "boot_sha256": side.boot}
            for subject, side in zip(subjects, sides, strict=True)
        ],
        **counts,
        files=dict(found.files),
        not_compared=found.missing,
    )
