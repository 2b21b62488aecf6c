"""What is not ours stays, whatever a variable says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools import released, step_into
from vmimage.cache import ours
from vmimage.cache.opened import open_store
from vmimage.cache.store import Store
from vmimage.commands import cache as care
from vmimage.stages.release.dist import remove_releases
from vmimage.stages.release.mark import MARK, is_marked, open_dist, require_ours
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
    monkeypatch.setattr(ours, "MARK_SECONDS", 0.05)
    monkeypatch.setattr(ours, "LOOK_SECONDS", 0.01)
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
    version = "20261127-01234567"
    mine = ["photos/a.jpg", "toolbox/notes.txt", "toolbox/20261127-00000000/other", "toolbox/latest/x", "a.txt"]
    mine += [".lock", "photos/.lock", "toolbox/20261127-00000001/manifest.json"]
    dist = made(tmp_path / "dist", mine)
    folder = released(dist, "toolbox", version)
    (dist / "toolbox/.lock").touch()
    outside = released(tmp_path, "toolbox", version)
    (dist / "outside").symlink_to(tmp_path / "toolbox")
    (dist / "toolbox/20261127-00000002").symlink_to(outside)
    assert remove_releases(dist) == [folder]
    (dist / "outside").unlink()
    (dist / "toolbox/20261127-00000002").unlink()
    assert set(all_below(dist)) == set(mine)
    assert (outside / "manifest.json").exists()


def test_dist_goes_with_its_last_release(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    open_dist(dist)
    for version in ("20261127-01234567", "20261127-01234567.2"):
        released(dist, "toolbox", version)
    (dist / "toolbox/.lock").touch()
    (dist / "toolbox/latest").symlink_to(version)
    (dist / "toolbox" / f".{version}-01234567").mkdir()
    assert [path.name for path in remove_releases(dist)] == ["20261127-01234567", "20261127-01234567.2"]
    assert not dist.exists()


NO_DIST: dict[str, list[str]] = {
    "a home": ["photos/a.jpg", ".ssh/id_ed25519", "notes.txt"],
    "wheels": ["vmimage-0.1.0-py3-none-any.whl"],
    "a file beside releases": ["toolbox/20261127-01234567/manifest.json", "toolbox/notes.txt"],
    "a file in the place of a version": ["toolbox/20261127-01234567"],
    "a folder in the place of the link": ["toolbox/latest/x"],
    "the lock of another": ["toolbox/.lock"],
    "a lock at the top": [".lock"],
    "the mark of another": [MARK],
    "a link": [],
}


@pytest.mark.parametrize("what", NO_DIST)
def test_dist_with_other_things_is_refused_and_stays_as_it_is(what: str, tmp_path: Path) -> None:
    dist = made(tmp_path / "dist", NO_DIST[what])
    if what == "a link":
        outside = made(tmp_path / "outside", ["20261127-01234567/manifest.json"])
        dist.mkdir()
        (dist / "toolbox").symlink_to(outside)
    before = all_below(tmp_path)
    for refusing in (require_ours, open_dist):
        with pytest.raises(
            InputError, match="is no folder of releases of vmimage, and holds other things: "
        ) as refused:
            refusing(dist)
    assert "VMIMAGE_DIST" in refused.value.hint
    assert all_below(tmp_path) == before


def test_dist_of_an_earlier_version_is_adopted_with_what_it_left(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    released(dist, "toolbox", "20261127-01234567")
    made(dist, ["toolbox/20261127-89abcdef/manifest.json", "toolbox/.20261127-89abcdef-01234567/x"])
    (dist / "toolbox/latest").symlink_to("20261127-01234567")
    (dist / "toolbox/.lock").touch()
    require_ours(dist)
    assert not (dist / MARK).exists(), "to look is not to write"
    open_dist(dist)
    made(dist, ["toolbox/notes.txt", "mine"])
    open_dist(dist)
    assert is_marked(dist)


def test_mark_that_was_begun_by_a_killed_process_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "MARK_SECONDS", 0.05)
    monkeypatch.setattr(ours, "LOOK_SECONDS", 0.01)
    for name in ("new", "earlier", "users"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ours.TAG).touch()
    made(tmp_path / "earlier", ["locks/x"])
    made(tmp_path / "users", ["photos/a.jpg"])
    for name in ("new", "earlier"):
        Store(tmp_path / name)
        assert ours.is_marked(tmp_path / name)
    with pytest.raises(InputError, match="photos"):
        Store(tmp_path / "users")
    assert not (tmp_path / "users" / ours.TAG).stat().st_size
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / MARK).touch()
    require_ours(tmp_path / "dist")
    assert not is_marked(tmp_path / "dist"), "to look is not to write"
    open_dist(tmp_path / "dist")
    assert is_marked(tmp_path / "dist")
