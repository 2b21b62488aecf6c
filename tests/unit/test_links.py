"""In a folder that others may write to: what they put there as a link is not written through."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tests.tools import step_into
from vmimage.cache.store import Store
from vmimage.util.console import Console
from vmimage.util.errors import HostError
from vmimage.util.files import written_beside
from vmimage.util.links import require_no_link_of_others


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


def of_another(link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a link be one that another user made."""
    if os.geteuid() == 0:
        os.lchown(link, 1, 1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: -1)


def test_log_is_not_written_through_a_link_of_another_user(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log/run.log").symlink_to(victim)
    of_another(tmp_path / "log/run.log", monkeypatch)
    with pytest.raises(HostError, match=r"run\.log is a link of the user with the number"):
        Console(log_dir=tmp_path / "log")
    assert victim.read_text() == "mine"


def test_log_still_goes_on_where_it_was(tmp_path: Path) -> None:
    log = logging.getLogger("vmimage")
    before = list(log.handlers)
    for word in ("one", "two"):
        Console(log_dir=tmp_path / "log").event(word)
        for handler in (each for each in list(log.handlers) if each not in before):
            log.removeHandler(handler)
            handler.close()
    assert [line.split()[3] for line in (tmp_path / "log/run.log").read_text().splitlines()] == ["one", "two"]


@pytest.mark.parametrize("folder", ["logs", "files", "work", "kept"])
def test_folder_of_a_cache_that_is_a_link_of_another_user_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    Store(cache)
    (cache / folder).rename(tmp_path / "elsewhere")
    (cache / folder).symlink_to(tmp_path / "elsewhere")
    Store(cache)  # one's own, to another disk
    of_another(cache / folder, monkeypatch)
    with pytest.raises(HostError, match=f"{folder} is a link of the user with the number"):
        Store(cache)


def test_results_do_not_go_through_a_link_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    (store.root / "base").symlink_to(tmp_path / "elsewhere")
    of_another(store.root / "base", monkeypatch)
    with pytest.raises(HostError, match="base is a link of the user"):
        store.get_or_make("base", {}, lambda work: {}, step_into([]))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_is_not_there_is_no_link(tmp_path: Path) -> None:
    require_no_link_of_others(tmp_path / "none")


def test_file_takes_the_place_of_a_link_and_not_of_what_it_leads_to(victim: Path, tmp_path: Path) -> None:
    target = tmp_path / "seconds.json"
    target.symlink_to(victim)
    with written_beside(target) as beside:
        beside.write_text("new")
    assert (victim.read_text(), target.read_text(), target.is_symlink()) == ("mine", "new", False)


@pytest.mark.parametrize("hard_links", [True, False])
def test_file_that_is_written_once_replaces_nothing(
    hard_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr("os.link", refused)
    path, link = tmp_path / "file", tmp_path / "link"
    with written_beside(path, once=True) as beside:
        beside.write_text("first")
    link.symlink_to(tmp_path / "none")
    for taken in (path, link):
        with pytest.raises(FileExistsError), written_beside(taken, once=True) as beside:
            beside.write_text("second")
    assert path.read_text() == "first"
    assert {each.name for each in tmp_path.iterdir()} == {"file", "link"}
