from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmimage.errors import BuildError, HostError
from vmimage.store import Store, disk_use, sha256_file, stage_key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def make(work: Path) -> dict[str, object]:
    (work / "out").write_text("made")
    return {"fact": 1}


def test_result_is_made_once(store: Store) -> None:
    first = store.get_or_make("stage", {"a": 1}, make)
    assert (first.cached, (first.path / "out").read_text(), first.meta["fact"]) == (False, "made", 1)
    assert {"seconds", "peak_bytes"} <= first.meta.keys()
    second = store.get_or_make("stage", {"a": 1}, lambda work: pytest.fail("made again"))
    assert (second.cached, second.path) == (True, first.path)
    assert not list((store.root / "work").iterdir())


def test_other_inputs_are_another_result(store: Store) -> None:
    assert store.get_or_make("stage", {"a": 1}, make).path != store.get_or_make("stage", {"a": 2}, make).path


def test_key_is_that_of_the_content_not_of_its_order() -> None:
    assert stage_key({"a": 1, "b": [1, 2]}) == stage_key({"b": [1, 2], "a": 1}) != stage_key({"a": 1, "b": [2, 1]})


def test_failure_leaves_nothing(store: Store) -> None:
    def fail(work: Path) -> dict[str, object]:
        (work / "half").write_text("x")
        raise BuildError("no")

    with pytest.raises(BuildError):
        store.get_or_make("stage", {}, fail)
    assert not store.find("stage", {})
    assert not list((store.root / "work").iterdir())
    assert not (store.root / "stage").exists()


def test_folder_without_its_last_file_is_no_result(store: Store) -> None:
    half = store.root / "stage" / stage_key({})
    half.mkdir(parents=True)
    (half / "out").write_text("half")
    assert not store.find("stage", {})
    assert (store.get_or_make("stage", {}, make).path / "out").read_text() == "made"


def test_two_at_once_make_it_once(store: Store) -> None:
    made, waited = [], []

    def slow(work: Path) -> dict[str, object]:
        made.append(work)
        time.sleep(0.3)
        return {}

    threads = [
        threading.Thread(target=lambda: store.get_or_make("stage", {}, slow, on_wait=lambda: waited.append(1)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(waited)) == (1, 2)


def test_sweep_removes_what_a_killed_process_left_and_nothing_that_is_in_use(store: Store) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom vmimage.store import Store\n"
        "with Store(Path(sys.argv[1])).workspace('killed') as work:\n"
        "    (work / 'big').write_text('x')\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, store.root], check=False)
    with store.workspace("alive") as alive:
        removed = store.sweep()
        assert [name.split("-")[0] for name in removed] == ["killed"]
        assert alive.exists()
    assert not list((store.root / "work").iterdir())
    assert not list((store.root / "locks").glob("work-*"))


def test_lock_dies_with_its_process(store: Store) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom vmimage.store import Store\n"
        "with Store(Path(sys.argv[1])).lock('l'):\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, store.root], check=False)
    with (store.root / "locks" / "l").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
