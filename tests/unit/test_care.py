from __future__ import annotations

import functools
import itertools
import os
import shutil
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.tools import before_call, released, step_into
from vmimage.cache.opened import open_store
from vmimage.cache.result import META, Result
from vmimage.cache.store import Store
from vmimage.commands import cache as care
from vmimage.util.errors import InputError
from vmimage.util.settings import Options, options

KIB = 1 << 10


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def made(store: Store, stage: str, name: str, *, after: str = "", used: int = 0, size: int = 64 * KIB) -> Result:
    """Make a result that was last used at a time."""

    def fill(work: Path) -> dict[str, object]:
        (work / "out").write_bytes(b"x" * size)
        return {}

    inputs = {"name": name, "after": after} if after else {"name": name}
    found = store.get_or_make(stage, inputs, fill, step_into([]))
    store.let_go(stage, found.key)
    os.utime(found.path / META, (used, used))
    return found


def test_entries_say_size_and_last_use_and_what_a_release_holds_does_not_count(store: Store, tmp_path: Path) -> None:
    base, export = made(store, "base", "a", used=1000), made(store, "export", "b", used=2000, size=512 * KIB)
    os.link(export.path / "out", tmp_path / "released")
    found = {entry.name: entry for entry in care.entries(store)}
    assert set(found) == {base.name, export.name}
    assert found[base.name].used == 1000
    assert 64 * KIB <= found[base.name].size < 128 * KIB
    assert found[export.name].size < 64 * KIB
    rows = care.summary(list(found.values()), now=2000 + 3600 * 5)
    assert [row[0] for row in rows] == ["STAGE", "base", "export", "total"]
    assert rows[2][4] == "5 h ago"
    assert care.table(rows).splitlines()[0].startswith("STAGE   ENTRIES  SIZE")


def test_least_recently_used_goes_first_until_the_rest_fits(store: Store) -> None:
    old, middle, new = (made(store, "base", str(used), used=used) for used in (100, 200, 300))
    size = next(entry.size for entry in care.entries(store) if entry.name == new.name)
    removed = care.clean(store, 2 * size, ())
    assert [entry.name for entry in removed] == [old.name]
    assert [each.path.exists() for each in (old, middle, new)] == [False, True, True]
    assert not care.clean(store, 2 * size, ()), "and nothing more"


def test_what_is_in_use_or_needed_stays_whatever_its_age(store: Store) -> None:
    used, needed, free = (made(store, "base", name, used=age) for age, name in enumerate(("a", "b", "c")))
    store.use("base", used.key)
    os.utime(used.path / META, (1, 1))
    removed = care.clean(Store(store.root), 0, {needed.name})
    assert [entry.name for entry in removed] == [free.name]
    assert used.path.exists()
    assert needed.path.exists()


def test_layers_go_with_their_base_and_count(store: Store) -> None:
    base = made(store, "base", "a", used=100)
    layer = made(store, "layer", "l", after=base.name, used=200)
    other = made(store, "bake", "b", used=300)
    size = next(entry.size for entry in care.entries(store) if entry.name == other.name)
    assert {entry.name for entry in care.clean(store, size, ())} == {base.name, layer.name}
    assert other.path.exists()


def test_what_the_latest_releases_were_made_from_is_needed(store: Store, tmp_path: Path) -> None:
    base = made(store, "base", "a")
    layer = made(store, "layer", "l", after=base.name)
    bake = made(store, "bake", "b", after=layer.name)
    for version, stages in (("20261122-00000000", {}), ("20261123-11111111", {"bake": {"key": bake.key}, "fetch": {}})):
        pins = {"tool": {"version": "1", "sha256": "ab" * 32}} if stages else {}
        released(tmp_path / "dist", "small", version, stages=stages, pins=pins)
    needed = {bake.name, layer.name, base.name, f"files/{'ab' * 32}"}
    assert care.needed_by_releases(store, tmp_path / "dist") == needed


def walk(store: Store) -> None:
    care.summary([*care.entries(store), care.Entry(stage="x", key="y", size=0, made=0, used=0)], now=0)


def clean_up(store: Store) -> None:
    care.clean(store, 1, ())
    care.remove_rest(store)


def vanish(store: Store) -> None:
    for stage in STAGES:
        shutil.rmtree(store.root / stage, ignore_errors=True)


def lose_half(store: Store) -> None:
    for stage in STAGES:
        for path in (store.root / stage).rglob("*"):
            if path.name in (META, "out"):
                path.unlink()


STAGES = {"base": f"{0:016x}", "layer": f"{1:016x}", "logs": "20261127-100000-build-image-1"}
READING = ("cache", "plan", "estimate", "layers")
LOOKS: dict[str, Callable[[Store], object]] = {
    "cache": walk,
    "clean": clean_up,
    "plan": lambda store: store.earlier("base"),
    "estimate": lambda store: store.estimate("base"),
    "layers": lambda store: store.layers_on("base", STAGES["base"]),
    "logs": lambda store: open_store(options_of(store)),
}


# What removes them itself reads nothing of a half.
@pytest.mark.parametrize(
    ("what", "lose"), [*((what, vanish) for what in LOOKS), *((what, lose_half) for what in LOOKS if what in READING)]
)
def test_what_vanishes_while_it_is_looked_at_is_no_error(
    store: Store, what: str, lose: Callable[[Store], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes results before the first call for files, and in the next round before the second one."""
    monkeypatch.setattr("vmimage.cache.opened.KEPT_LOGS", 0)
    own = ("logs",) if what == "logs" else ("base", "layer")
    for number in itertools.count(1):
        for folder in (store.root / stage / STAGES[stage] for stage in own):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "out").touch()
            (folder / "inputs.json").write_text(f'{{"after": "base/{STAGES["base"]}"}}')
            (folder / META).write_text('{"content": {}}')
        if before_call(number, functools.partial(LOOKS[what], store), functools.partial(lose, store)) < number:
            break
    assert number > 5, "each place was met"


def options_of(store: Store) -> Options:
    return options({"VMIMAGE_CACHE": str(store.root)})


def test_clock_that_was_ahead_keeps_nothing_for_ever(store: Store) -> None:
    ahead, made_ahead, old, new = (made(store, "base", name) for name in ("ahead", "made ahead", "old", "new"))
    now, future = time.time(), time.time() + 1e9
    os.utime(ahead.path / META, (future, future))
    os.utime(ahead.path, (now - 5000, now - 5000))
    for path in (made_ahead.path, made_ahead.path / META):
        os.utime(path, (future, future))
    os.utime(old.path / META, (now - 4000, now - 4000))
    os.utime(new.path / META, (now, now))
    size = next(entry.size for entry in care.entries(store) if entry.name == new.name)
    assert [entry.name for entry in care.clean(store, size, ())] == [made_ahead.name, ahead.name, old.name]
    assert care.ago(-3600) == "in the future"
    assert care.ago(-5) == "just now"


def test_logs_from_the_future_go_before_those_of_today(store: Store) -> None:
    today = f"{datetime.now().astimezone():%Y%m%d}"
    names = [f"20990101-0000{number:02}-verify-1" for number in range(25)]
    names += [f"{today}-0000{number:02}-verify-1" for number in range(10)]
    for name in names:
        (store.root / "logs" / name).mkdir()
    open_store(options_of(store))
    left = sorted(path.name for path in (store.root / "logs").iterdir())
    assert left == sorted([*names[25:], *names[15:25]])


@pytest.mark.parametrize("kind", ["logs", "kept", "partial"])
def test_what_a_running_build_writes_stays(store: Store, kind: str) -> None:
    form = f"{'{:064x}'}-{'0' * 12}" if kind == "partial" else "20261127-10000{}-build-image-1"
    old, running = form.format(1), form.format(2)
    for name in (old, running):
        (store.root / kind / name).mkdir(parents=True)
    store.hold(kind, running)
    assert [entry.name for entry in care.clean(Store(store.root), 0, ())] == [f"{kind}/{old}"]


def test_everything_goes_when_nothing_is_to_be_kept(store: Store) -> None:
    made(store, "base", "a")
    (store.root / "files" / f"{1:064x}").write_text("x")
    for folder in ("kept", "logs"):
        (store.root / folder / "20261127-100000-build-image-1").mkdir()
    (store.root / "host.json").write_text("{}")
    care.clean(store, 0, ())
    care.remove_rest(store)
    assert sorted(path.name for path in store.root.iterdir()) == ["CACHEDIR.TAG", "locks", "work"]
    assert not list((store.root / "work").iterdir())


@pytest.mark.parametrize(
    ("text", "size"), [("10G", 10 << 30), ("500 MiB", 500 << 20), ("1.5GB", 3 << 29), ("0", 0), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert care.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "ten", "10 X", "-1G", "1G2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="no size"):
        care.parse_size(text)
