from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.tools import step_into
from vmimage.cache.result import Result, stage_key
from vmimage.cache.store import Store
from vmimage.commands import cache as care
from vmimage.util.errors import BuildError, HostError
from vmimage.util.files import disk_use, remove_tree, sha256_file

QUIET = step_into([])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def make(work: Path) -> dict[str, object]:
    (work / "out").write_text("made")
    return {"fact": 1}


def test_result_is_made_once(store: Store) -> None:
    first = store.get_or_make("stage", {"a": 1}, make, QUIET)
    assert (first.cached, (first.path / "out").read_text(), first.meta["fact"]) == (False, "made", 1)
    assert {"seconds", "peak_bytes"} <= first.meta.keys()
    second = store.get_or_make("stage", {"a": 1}, lambda work: pytest.fail("made again"), QUIET)
    assert (second.cached, second.path) == (True, first.path)
    assert not list((store.root / "work").iterdir())


def test_other_inputs_are_another_result(store: Store) -> None:
    assert (
        store.get_or_make("stage", {"a": 1}, make, QUIET).path != store.get_or_make("stage", {"a": 2}, make, QUIET).path
    )


def test_key_is_that_of_the_content_not_of_its_order() -> None:
    assert stage_key({"a": 1, "b": [1, 2]}) == stage_key({"b": [1, 2], "a": 1}) != stage_key({"a": 1, "b": [2, 1]})


def test_failure_leaves_nothing(store: Store) -> None:
    def fail(work: Path) -> dict[str, object]:
        (work / "half").write_text("x")
        raise BuildError("no")

    with pytest.raises(BuildError):
        store.get_or_make("stage", {}, fail, QUIET)
    assert not store.find("stage", {})
    assert not list((store.root / "work").iterdir())
    assert not (store.root / "stage").exists()


def test_folder_without_its_last_file_is_no_result(store: Store) -> None:
    half = store.root / "stage" / stage_key({})
    half.mkdir(parents=True)
    (half / "out").write_text("half")
    assert not store.find("stage", {})
    assert (store.get_or_make("stage", {}, make, QUIET).path / "out").read_text() == "made"


def test_two_at_once_make_it_once(store: Store) -> None:
    made, said = list[Path](), list[str]()

    def slow(work: Path) -> dict[str, object]:
        made.append(work)
        time.sleep(0.3)
        return {}

    threads = [threading.Thread(target=lambda: store.get_or_make("stage", {}, slow, step_into(said))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), sum("another process" in text for text in said)) == (1, 2)


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone", "no JSON"])
def test_damaged_result_is_noticed_and_made_again(store: Store, damage: str) -> None:
    first = store.get_or_make("stage", {"a": 1}, make, QUIET)
    file = first.path / "out"
    match damage:
        case "gone":
            file.unlink()
        case "no JSON":
            (first.path / "meta.json").write_text("{")
        case _:
            file.write_text("m" if damage == "shorter" else "made, and more")
    assert not store.find("stage", {"a": 1})
    said = list[str]()
    again = store.get_or_make("stage", {"a": 1}, make, step_into(said))
    assert (again.cached, (again.path / "out").read_text()) == (False, "made")
    assert "is damaged: it is made again" in said[0]


def test_flipped_byte_with_its_old_time_is_found_when_asked(store: Store) -> None:
    first = store.get_or_make("stage", {"a": 1}, make, QUIET)
    file = first.path / "out"
    times = file.stat()
    file.write_text("mAde")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.get_or_make("stage", {"a": 1}, make, QUIET).cached
    said = list[str]()
    assert not store.get_or_make("stage", {"a": 1}, make, step_into(said), check=True).cached
    assert "is damaged: it is made again" in said[0]
    assert file.read_text() == "made"


def test_fresh_result_is_made_though_there_is_one(store: Store) -> None:
    store.get_or_make("stage", {"a": 1}, make, QUIET)
    assert not store.get_or_make("stage", {"a": 1}, make, QUIET, fresh=True).cached


def layered(store: Store) -> list[Result]:
    """A base, two layers on it one on the other, and another base with one."""
    found = list[Result]()
    for number, stage in enumerate(("base", "layer", "layer", "base", "layer")):
        after = found[-1].name if stage == "layer" else ""
        found.append(store.get_or_make(stage, {"number": number, "after": after}, make, QUIET))
    return found


def test_what_was_made_from_bytes_that_are_gone_is_made_again(store: Store) -> None:
    said: list[str] = []
    base = store.get_or_make("base", {}, make, QUIET)
    export = store.get_or_make("export", {"after": base.name}, make, QUIET, below=base)
    assert store.find("export", export.inputs, below=base)
    again = store.get_or_make("base", {}, make, QUIET, fresh=True)
    assert again.key == base.key
    assert not store.find("export", export.inputs, below=again)
    made = store.get_or_make("export", export.inputs, make, step_into(said), below=again)
    assert not made.cached
    assert f"{made.name} was made from another result: it is made again" in said
    assert store.get_or_make("export", export.inputs, make, QUIET, below=again).cached


def test_result_is_held_from_when_it_is_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    publish = Store.publish

    def and_clean(self: Store, work: Path, final: Path) -> None:
        publish(self, work, final)
        tried.append(Store(store.root).remove("stage", final.name))

    monkeypatch.setattr(Store, "publish", and_clean)
    assert store.get_or_make("stage", {}, make, QUIET).path.exists()
    assert tried == [False]


def test_cleaning_while_a_result_is_published(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def and_clean(path: Path) -> None:
        care.clean(Store(store.root), 0, ())
        care.remove_rest(Store(store.root))

    monkeypatch.setattr("vmimage.cache.store.sync_tree", and_clean)
    assert store.get_or_make("stage", {}, make, QUIET).path.exists()


def test_cleaning_between_a_folder_and_the_result_in_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[bool] = []

    def and_clean(path: Path) -> None:
        if len(cleaned) < 3:  # each time anew
            cleaned.append(path.is_dir())
            care.remove_rest(Store(store.root))

    monkeypatch.setattr("vmimage.cache.store.require_no_link_of_others", and_clean)
    assert store.get_or_make("stage", {}, make, QUIET).path.exists()
    assert cleaned == [True] * 3


def test_result_that_is_gone_before_it_is_published_is_an_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.publish(tmp_path / "gone", store.root / "stage" / "x")


def test_locks_of_what_has_ended_are_swept_away(store: Store) -> None:
    used = store.get_or_make("stage", {}, make, QUIET)
    store.use("stage", "0" * 16)
    with Store(store.root).lock("held"):
        Store(store.root).sweep()
        assert {path.name for path in (store.root / "locks").iterdir()} == {"held", f"use-stage-{used.key}"}


def test_layers_go_with_what_they_stand_on(store: Store) -> None:
    base, first, second, other, on_other = layered(store)
    assert store.layers_on("base", base.key) == [first.key, second.key]
    assert store.remove("base", base.key)
    assert [each.path.exists() for each in (base, first, second, other, on_other)] == [False, False, False, True, True]
    assert not list((store.root / "work").iterdir())


def test_what_another_process_uses_is_not_removed(store: Store) -> None:
    used = store.get_or_make("stage", {"a": 1}, make, QUIET)
    assert not Store(store.root).remove("stage", used.key)
    assert used.path.exists()
    store.let_go("stage", used.key)
    assert Store(store.root).remove("stage", used.key)
    assert not used.path.exists()


def test_too_little_room_is_told_before_anything_is_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(store.root)._replace(free=3 << 30)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(HostError, match="has 3072 MiB free, and base needs about 3072 MiB") as refused:
        store.get_or_make("base", {}, lambda work: pytest.fail("it was begun"), QUIET)
    assert "invoke clean --keep" in refused.value.hint


def test_estimate_is_what_was_needed_before(store: Store) -> None:
    assert store.estimate("base") == 3 << 30
    store.get_or_make("base", {}, make, QUIET)
    assert 0 < store.estimate("base") < 1 << 20


def test_disk_that_becomes_full_is_told_and_leaves_nothing(store: Store) -> None:
    def fill(work: Path) -> dict[str, object]:
        (work / "half").write_text("x")
        Path("/dev/full").write_text("x")
        return {}

    with pytest.raises(HostError, match="is full; nothing half-made was kept"):
        store.get_or_make("stage", {}, fill, QUIET)
    assert not store.find("stage", {})
    assert not list((store.root / "work").iterdir())


def test_folder_is_removed_though_an_ending_program_still_writes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, rmdir, late = tmp_path / "work", os.rmdir, iter(("late", "later"))

    def written_to_meanwhile(path: str | Path, **more: int) -> None:
        for name in itertools.islice(late, 1):
            (work / name).write_text("x")
        rmdir(path, **more)

    work.mkdir()
    monkeypatch.setattr(os, "rmdir", written_to_meanwhile)
    remove_tree(work)
    assert not work.exists()
    assert next(late, None) is None, "it was tried again"


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot write to the cache"):
        Store(tmp_path / "file" / "cache")


def test_digest_and_allocation(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert disk_use(tmp_path) < 1 << 20
