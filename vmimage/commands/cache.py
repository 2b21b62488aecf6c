"""`invoke cache` and `invoke clean`: what the cache holds, and what may be removed."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmimage.cache.ours import REMEMBERED, is_entry
from vmimage.cache.result import AFTER, LAYER, META
from vmimage.cache.store import Store
from vmimage.commands.session import session
from vmimage.inputs.kept import kept_digests
from vmimage.stages.release.dist import latest_releases, remove_releases, tell_misfits
from vmimage.stages.release.mark import require_ours
from vmimage.util.console import human_bytes
from vmimage.util.errors import InputError
from vmimage.util.files import freed_by_removal, listed
from vmimage.util.settings import Options

# In the order in which a build makes them; whatever else there is comes behind.
ORDER = ("files", "partial", "base", "layer", "bake", "export", "verify", "kept", "logs")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
AHEAD_SECONDS = 60.0
"""So far ahead of this host's clock may a file's time be: its file system may be another host's."""
NO_ENTRIES = ("work", "locks")
"""What running builds need; `Store.sweep` keeps it small."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something in the cache that can be removed by itself.

    Attributes:
        size: Bytes that its removal frees: what a release also holds (by a hard link) does not count.
        made: Seconds since 1970, like `used`.
    """

    stage: str
    key: str
    size: int
    made: float
    used: float

    @property
    def name(self) -> str:
        """STAGE/KEY."""
        return f"{self.stage}/{self.key}"


def entries(store: Store) -> list[Entry]:
    """Return all that is in the cache, in the order of the stages."""
    found = []
    for path in (path for folder in listed(store.root) for path in listed(folder)):
        if path.parent.name in NO_ENTRIES or not is_entry(path.parent.name, path.name):
            continue
        # A running build, or another `invoke clean`, may remove it at any time.
        with contextlib.suppress(FileNotFoundError):
            state, size = path.lstat(), freed_by_removal(path)
            used = _time_of_meta(path / META) or max(state.st_mtime, state.st_atime)
            found.append(Entry(stage=path.parent.name, key=path.name, size=size, made=state.st_mtime, used=used))
    rank = {stage: place for place, stage in enumerate(ORDER)}
    return sorted(found, key=lambda entry: (rank.get(entry.stage, len(ORDER)), entry.name))


def _time_of_meta(meta: Path) -> float | None:
    """Return when a result was used last; None for what is none, or is being made or removed."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return meta.stat().st_mtime
    return None


def last_use(entry: Entry, now: float) -> float:
    """Return when an entry was used last, to sort by. A clock that was ahead must not keep an entry for ever.

    If this time is in the future, the time when the entry was made counts. If that is in the future too, 0 counts.
    """
    return next((time for time in (entry.used, entry.made) if time <= now + AHEAD_SECONDS), 0.0)


def summary(found: Sequence[Entry], now: float) -> list[list[str]]:
    """Return rows for people, one a stage: how many, how large, the age of the oldest, the last use."""
    rows = [["STAGE", "ENTRIES", "SIZE", "OLDEST", "LAST USE"]]
    for stage in dict.fromkeys(entry.stage for entry in found):
        own = [entry for entry in found if entry.stage == stage]
        oldest, used = min(entry.made for entry in own), max(entry.used for entry in own)
        size = human_bytes(sum(entry.size for entry in own))
        rows.append([stage, str(len(own)), size, ago(now - oldest), ago(now - used)])
    rows.append(["total", str(len(found)), human_bytes(sum(entry.size for entry in found)), "", ""])
    return rows


def ago(seconds: float) -> str:
    """Return a span of time for people: "5 min ago"."""
    if seconds < -AHEAD_SECONDS:
        return "in the future"
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text, columns one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def needed_by_releases(store: Store, dist: Path) -> set[str]:
    """Return the names of what the latest release of each image was made from: layers, pinned files, packages, too."""
    needed = set[str]()
    for release in latest_releases(dist):
        needed |= {f"files/{pin.sha256}" for pin in release.manifest.pins.values()}
        for stage, facts in release.manifest.stages.items():
            needed |= set(_below(store, f"{stage}/{facts.key}")) if facts.key else set()
    return needed


def _below(store: Store, name: str) -> Iterator[str]:
    """Yield the name of a result, and of all that it stands on, to the packages of its base."""
    while is_entry(*name.partition("/")[::2]):
        yield name
        found = store.result(*name.split("/"))
        yield from (f"files/{sha256}" for sha256 in (kept_digests(found.path) if found else ()))
        try:
            name = str(found.inputs.get(AFTER, "")) if found else ""
        except ValueError:
            # Another process removed it.
            return


def parse_size(text: str) -> int:
    """Read a size such as 10G, "500 MiB" or 0.

    Raises:
        InputError: It is none.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?)(?:i?B)?", text.strip())
    if not match:
        raise InputError(f"--keep {text}: no size", hint="such as 10G or 500M")
    return int(float(match[1]) * UNITS.get(match[2], 1))


def clean(store: Store, keep: int, needed: Collection[str]) -> list[Entry]:
    """Remove what was used least recently until the cache is no larger than `keep`; returns what was removed.

    Args:
        keep: Bytes.
        needed: Names of entries that stay, whatever their age. Entries that a running build uses stay, too.
    """
    store.sweep()
    found = entries(store)
    size = sum(entry.size for entry in found)
    removed = []
    # At the same time last used: what was made later goes first, since it may stand on the other.
    now = time.time()
    for entry in sorted(found, key=lambda entry: (last_use(entry, now), -entry.made)):
        if keep and size <= keep:
            break
        if entry.name in needed or not (store.root / entry.stage / entry.key).exists():
            continue
        above = [f"{LAYER}/{key}" for key in store.layers_on(entry.stage, entry.key)]
        if store.remove(entry.stage, entry.key):
            gone = [other for other in found if other.name in (entry.name, *above) and other not in removed]
            size -= sum(other.size for other in gone)
            removed += gone
    return removed


def remove_rest(store: Store) -> None:
    """Remove what the cache remembers of this host, and folders that are empty."""
    for path in listed(store.root):
        if path.is_file():
            if path.name in REMEMBERED:
                path.unlink(missing_ok=True)
        elif path.name not in NO_ENTRIES:
            # A running build may put something there at any time; it makes the folder where it is missing.
            with contextlib.suppress(OSError):
                path.rmdir()


def show_cache(chosen: Options, *, json: bool) -> None:
    """Print what is cached, a line a stage."""
    with session(chosen, json_lines=json) as (console, store):
        found = entries(store)
        needed = needed_by_releases(store, chosen.dist)
        tell_misfits(chosen.dist, console)
        for entry in found:
            console.event("entry", **vars(entry), released=entry.name in needed)
        console.say(table(summary(found, time.time())))


def clean_cache(chosen: Options, *, keep: str, releases: bool) -> None:
    """Remove what is cached, all or down to a size, and print what was removed.

    Args:
        keep: A size; all goes when empty.
        releases: Remove dist/, too.
    """
    with session(chosen) as (console, store):
        limit = parse_size(keep) if keep else 0
        if releases:
            require_ours(chosen.dist)
        if keep:
            tell_misfits(chosen.dist, console)
        removed = clean(store, limit, needed_by_releases(store, chosen.dist) if keep else ())
        if not keep:
            remove_rest(store)
        for entry in removed:
            console.say(f"removed {entry.name}, {human_bytes(entry.size)}")
        left = entries(store)
        console.say(f"{human_bytes(sum(entry.size for entry in left))} are left in {store.root}")
        if releases and chosen.dist.exists():
            for path in remove_releases(chosen.dist):
                console.say(f"removed {path}")
            tell_misfits(chosen.dist, console)
            if chosen.dist.exists():
                console.say(f"{chosen.dist} stays: it holds something that is no release")
