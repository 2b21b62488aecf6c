from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from vmimage import PROJECT
from vmimage.cache.store import Store
from vmimage.util.run import Confine, run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_sweep_removes_what_a_killed_process_left_and_nothing_that_is_in_use(store: Store) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom vmimage.cache.store import Store\n"
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
        "import os, sys\nfrom pathlib import Path\nfrom vmimage.cache.store import Store\n"
        "with Store(Path(sys.argv[1])).lock('l'):\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, store.root], check=False)
    with (store.root / "locks" / "l").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


ON_A_SMALL_DISK = """
import sys
from pathlib import Path

from tests.tools import step_into
from vmimage import PROJECT
from vmimage.commands import cache as care
from vmimage.util.errors import HostError
from vmimage.util.run import run
from vmimage.cache.store import Store

root = Path(sys.argv[1])
run(["mount", "-t", "tmpfs", "-o", "size=272m", "none", root])
store = Store(root)


def make(work, size):
    (work / "half").write_text("x")
    run(["qemu-img", "create", "-f", "raw", "-o", "preallocation=full", work / "disk.raw", size])
    return {}


for size in ("300M", "1M"):
    try:
        store.get_or_make("stage", {}, lambda work: make(work, size), step_into([]))
    except HostError as error:
        print(error.message)
    print(size, "made" if store.find("stage", {}) else "not made", *(root / "work").iterdir())
"""


def test_file_system_that_becomes_full_under_a_tool_of_a_stage(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    said = run(argv, confine=Confine.FAKE_ROOT, cwd=PROJECT).output.splitlines()
    assert said[0] == f"the disk with {tmp_path} is full; nothing half-made was kept"
    assert "No space left on device" in "".join(said[1:-2])
    assert said[-2:] == ["300M not made", "1M made"]
