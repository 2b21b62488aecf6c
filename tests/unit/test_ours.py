"""What is not ours stays, whatever a variable says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools import step_into
from vmimage.cache import ours
from vmimage.cache.store import Store
from vmimage.commands import cache as care
from vmimage.pipeline import open_store
from vmimage.stages.release.dist import remove_releases
from vmimage.util.errors import InputError
from vmimage.util.settings import options

MINE = {
    "a home": ["photos/a.jpg", ".ssh/id_ed25519", "notes.txt"],
    "names like ours": ["work/thesis/chapter1.tex", "logs/app.log", "files/list", "locks/x"],
    "only files of ours beside one": ["locks/x", "base/0123456789abcdef/meta.json", "host.json", "thesis.tex"],
    "a stage with other things": ["locks/x", "base/0123456789abcdef/meta.json", "base/guitar.txt"],
    "another cache": ["CACHEDIR.TAG", "objects/x"],
    "an empty mark": ["photos/a.jpg", "empty"],
    "only the mark of another": ["CACHEDIR.TAG"],
    "only a link as a mark": [],
}


def all_below(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def made(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(ours.SIGNATURE if name == ours.TAG else name)
    return root


@pytest.mark.parametrize("what", MINE)
def test_folder_with_other_things_is_refused_and_stays_as_it_is(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "MARK_SECONDS", 0.2)
    root = made(tmp_path / "disk", MINE[what])
    if what == "an empty mark":
        (root / ours.TAG).symlink_to(root / "empty")
    outside = tmp_path / "outside"
    outside.write_text("mine")
    if what == "only a link as a mark":
        root.mkdir()
        (root / ours.TAG).symlink_to(outside)
    before = all_below(root)
    with pytest.raises(InputError, match="is no cache of vmimage, and holds other things: ") as refused:
        open_store(options({"VMIMAGE_CACHE": str(root)}))
    assert "VMIMAGE_CACHE" in refused.value.hint
    assert all_below(root) == before
    assert outside.read_text() == "mine"


def test_new_empty_and_earlier_caches_are_marked_and_opened_again(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    earlier = made(
        tmp_path / "earlier",
        ["locks/use-base-0", "base/0123456789abcdef/meta.json", "host.json", f"files/{1:064x}", "work/run-0a1b2c3d/x"],
    )
    for root in (tmp_path / "deep/new", tmp_path / "empty", earlier):
        for _ in range(2):
            Store(root)
            assert ours.is_marked(root)
            assert (root / ours.TAG).read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")


def test_many_open_a_new_cache_at_once(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def attempt() -> None:
        try:
            Store(tmp_path / "cache")
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test is to show it
            failed.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []


def sweep(store: Store) -> None:
    store.sweep()


def clean(store: Store) -> None:
    care.clean(store, 0, ())
    care.remove_rest(store)


def logs(store: Store) -> None:
    open_store(options({"VMIMAGE_CACHE": str(store.root)}))


@pytest.mark.parametrize("command", [sweep, clean, logs])
def test_what_somebody_put_into_a_cache_stays(command: Callable[[Store], None], tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    store.get_or_make("base", {}, lambda work: ((work / "out").write_text("x") and {}) or {}, step_into([]))
    store.close()
    mine = [
        "work/thesis/a.tex",
        "logs/app.log",
        "files/list",
        "notes.txt",
        "photos/a.jpg",
        "base/guitar/a",
        "locks/d/x",
    ]
    mine += [f"logs/{number:03}.log" for number in range(50)]
    made(store.root, mine)
    command(store)
    assert set(mine) <= all_below(store.root).keys()


def test_only_releases_are_removed_from_dist(tmp_path: Path) -> None:
    mine = ["photos/a.jpg", "toolbox/notes.txt", "toolbox/20261127-00000000/other", "toolbox/latest/x", "a.txt"]
    version = "toolbox/20261127-01234567"
    dist = made(tmp_path / "dist", [*mine, f"{version}/manifest.json", f"{version}/a.qcow2", "toolbox/.lock"])
    (dist / "outside").symlink_to(tmp_path)
    (tmp_path / "20261127-01234567").mkdir()
    (tmp_path / "20261127-01234567/manifest.json").write_text("{}")
    assert remove_releases(dist) == [dist / version]
    assert set(all_below(dist)) == set(mine)
    assert (tmp_path / "20261127-01234567/manifest.json").exists()
    only = made(tmp_path / "only", [f"{version}/manifest.json", "toolbox/.lock"])
    (only / "toolbox/latest").symlink_to("20261127-01234567")
    remove_releases(only)
    assert not only.exists()
