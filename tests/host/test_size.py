from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from vmimage import PROJECT
from vmimage.commands.size import treemap
from vmimage.commands.size.measure import (
    BLOCK,
    FOLDERS,
    FREE,
    GROUPS,
    OUTSIDE,
    TABLES,
    ImageSize,
    block_owners,
    component_files,
    measure,
    merged_usr,
    owner_of,
)
from vmimage.commands.size.report import require_replaceable, table
from vmimage.disk.ext4 import Node, Root, Run
from vmimage.disk.raw import extents
from vmimage.formats.qcow2 import CLUSTER, cluster_size, write_qcow2
from vmimage.spec.load import load_spec
from vmimage.stages.base import write_disk
from vmimage.util.errors import InputError
from vmimage.util.run import Confine, run

PROGRAM = os.urandom(1 << 20)
TREE = {
    "usr/bin/tool": PROGRAM,
    "usr/lib/modules/6.1/kernel/drivers/net/e1000.ko.xz": os.urandom(200_000),
    "usr/local/bin/helm": os.urandom(300_000),
    "usr/lib/python3/__pycache__/a.pyc": b"bytecode " * 1000,
    "boot/initrd.img-6.1": os.urandom(500_000),
    "var/lib/dpkg/info/tool:amd64.list": b"/.\n/bin\n/bin/tool\n",
    "var/lib/rancher/k3s/agent/images/all.tar.zst": os.urandom(100_000),
    "srv/text": b"the same line\n" * 100_000,
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("size")
    for name, data in TREE.items():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    write_disk(folder / "disk.raw", folder / "tree")
    return folder / "disk.raw"


@pytest.fixture(scope="module")
def size(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageSize:
    return measure(disk, tmp_path_factory.mktemp("work"), {"/usr/local/bin/helm": "helm"}, CLUSTER)


def part(size: ImageSize, group: str, name: str) -> tuple[int, int, int]:
    (found,) = [part for part in size.parts if (part.group, part.name) == (group, name)]
    return found.files, found.disk_bytes, found.qcow2_bytes


@pytest.mark.parametrize(
    ("group", "name", "file"),
    [
        ("packages", "tool", "usr/bin/tool"),
        ("boot", "drivers/net modules", "usr/lib/modules/6.1/kernel/drivers/net/e1000.ko.xz"),
        ("boot", "initrd", "boot/initrd.img-6.1"),
        ("components", "helm", "usr/local/bin/helm"),
        ("container images", "all.tar.zst", "var/lib/rancher/k3s/agent/images/all.tar.zst"),
        ("caches and others", "others", "srv/text"),
    ],
)
def test_each_part_has_its_files(size: ImageSize, group: str, name: str, file: str) -> None:
    files, disk_bytes, qcow2_bytes = part(size, group, name)
    assert files == 1
    assert disk_bytes == -(-len(TREE[file]) // BLOCK) * BLOCK
    if file == "srv/text":
        assert qcow2_bytes < len(TREE[file]) / 10
    else:
        # Random bytes do not compress; at its ends the part shares clusters with others.
        assert abs(qcow2_bytes - disk_bytes) < CLUSTER


def test_picture_replaces_only_pictures(tmp_path: Path) -> None:
    photo, old = tmp_path / "photo.svg", tmp_path / "size.svg"
    photo.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    old.write_text(treemap.picture(ImageSize(parts=(), tar_zst_bytes=1), "title", "subtitle"))
    (tmp_path / "folder.svg").mkdir()
    for path in (photo, tmp_path / "folder.svg"):
        with pytest.raises(InputError, match="did not make it"):
            require_replaceable(path)
    require_replaceable(old)
    require_replaceable(tmp_path / "new.svg")


def test_parts_are_all_that_is_allocated_and_all_that_the_qcow2_holds(
    size: ImageSize, disk: Path, tmp_path: Path
) -> None:
    with disk.open("rb") as file:
        blocks = [os.pread(file.fileno(), BLOCK, at) for a, b in extents(file.fileno()) for at in range(a, b, BLOCK)]
    everything = size.total()
    assert everything.disk_bytes == BLOCK * sum(any(block) for block in blocks)
    qcow2 = tmp_path / "disk.qcow2"
    write_qcow2(disk, qcow2, compression="zstd")
    assert cluster_size(qcow2.read_bytes()[:100]) == CLUSTER
    tables = qcow2.stat().st_size - everything.qcow2_bytes
    assert 0 < tables < 16 * CLUSTER + everything.qcow2_bytes / 20


def test_tar_of_the_tree_is_what_its_bytes_need(size: ImageSize) -> None:
    noise = sum(len(data) for name, data in TREE.items() if name not in ("srv/text",) and len(data) > 10_000)
    assert noise < size.tar_zst_bytes < noise + 50_000


def test_bytes_that_stay_in_free_space_are_found(disk: Path, tmp_path: Path) -> None:
    dirty = tmp_path / "dirty.raw"
    dirty.write_bytes(b"")
    os.truncate(dirty, disk.stat().st_size)
    with disk.open("rb") as source, dirty.open("r+b") as copy:
        for start, end in extents(source.fileno()):
            copy.seek(start)
            copy.write(os.pread(source.fileno(), end - start, start))
        copy.seek(7 << 30)
        copy.write(PROGRAM)
    assert part(measure(dirty, tmp_path, {}, CLUSTER), "not trimmed", "free space") == (0, len(PROGRAM), len(PROGRAM))


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/boot/vmlinuz-6.1", ("boot", "kernel")),
        ("/boot/grub/fonts/unicode.pf2", ("boot", "GRUB")),
        ("/usr/lib/modules/6.1/kernel/fs/nfs/nfs.ko.xz", ("boot", "fs modules")),
        ("/usr/lib/modules/6.1/modules.dep", ("boot", "modules' indexes")),
        ("/usr/bin/tool", ("packages", "tool")),
        ("/usr/local/bin/own", ("components", "own")),
        ("/etc/systemd/system/x.service", ("components", "own")),
        ("/usr/local/bin/stray", ("components", "others")),
        ("/etc/fstab", ("caches and others", "settings")),
        ("/var/lib/dpkg/status", ("caches and others", "dpkg's database")),
        ("/opt/x", ("caches and others", "others")),
    ],
)
def test_owner_of_a_path(path: str, owner: tuple[str, str]) -> None:
    components = {"/usr/local/bin/own": "own", "/etc/systemd/system/x.service": "own"}
    assert owner_of(path, {"/usr/bin/tool": "tool"}, components) == owner
    assert owner[0] in GROUPS


def test_lists_of_packages_may_name_the_old_folders() -> None:
    assert [merged_usr(path) for path in ("/bin/sh", "/lib/x", "/library", "/usr/bin/sh")] == [
        *("/usr/bin/sh", "/usr/lib/x", "/library", "/usr/bin/sh"),
    ]  # fmt: skip


def test_files_of_components_come_from_their_pins_and_their_folder() -> None:
    spec = load_spec(PROJECT / "images.yaml")
    found = component_files(["system", "helm"], spec.components)
    assert found["/usr/local/bin/helm"] == "helm"
    assert found["/etc/sudoers.d/dev"] == "system"
    assert set(found.values()) == {"system", "helm"}


def test_every_block_has_one_owner() -> None:
    def node(path: str, mode: int, disk: int) -> Node:
        run = Run(at=0, disk=disk * BLOCK, length=BLOCK)
        return Node(path=path, inode=1, mode=mode, uid=0, gid=0, size=1, mtime=0, target="", runs=(run,))

    nodes = (node("/a", stat.S_IFDIR, 4), node("/a/b", stat.S_IFREG, 5))
    free = ((6 * BLOCK, 8 * BLOCK),)
    root = Root(start=2 * BLOCK, block=BLOCK, size=6 * BLOCK, nodes=nodes, journal=(), free=free)
    owner = ("packages", "b")
    numbers, names = block_owners(root, 9 * BLOCK, [FOLDERS, owner])
    assert [names[number] for number in numbers] == [
        *(OUTSIDE, OUTSIDE, TABLES, TABLES, FOLDERS, owner, FREE, FREE, OUTSIDE),
    ]  # fmt: skip


def test_table_names_the_largest_and_sums_up(size: ImageSize) -> None:
    lines = list(table("toolbox 1", size, size.total().qcow2_bytes + (1 << 20)))
    assert [line.split()[0] for line in lines[1:] if line[:1].strip()][:2] == ["boot", "packages"]
    assert any(line.split() == ["qcow2's", "own", "tables", "0.0", "MiB", "1.0", "MiB"] for line in lines)
    ratio = (size.total().qcow2_bytes + (1 << 20)) / size.tar_zst_bytes
    assert lines[-1].endswith(f"the qcow2 is {ratio:.3f} of it.")


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from types import SimpleNamespace

import zstandard

from tests.tools import released
from vmimage.commands.size.report import show_size
from vmimage.cache.store import Store
from vmimage.spec.load import load_spec
from vmimage.util.console import Console
from vmimage.util.errors import VmimageError
from vmimage.util.run import run

root = Path(sys.argv[1])
run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", root])
folder = released(root / "dist", "toolbox", "20261127-01234567", zstandard.compress(bytes(range(256)) * (1 << 18)))
for path in folder.iterdir():
    path.rename(path.with_name(path.name.replace(".qcow2", ".raw.zst")))
manifest = folder / "manifest.json"
manifest.write_text(manifest.read_text().replace("qcow2", "raw.zst"))
bake = SimpleNamespace(image="toolbox", find=lambda: None, context=SimpleNamespace(store=Store(root / "cache")))
try:
    show_size(bake, load_spec(Path("images.yaml")), root / "dist", Console(), version=None, output=None)
except VmimageError as error:
    print(error.exit_code, error.message, error.hint)
"""


def test_full_disk_is_told_as_what_it_is(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path)]
    said = run(argv, confine=Confine.FAKE_ROOT, cwd=PROJECT).output
    assert said.startswith(f"3 the disk with {tmp_path}/cache is full; nothing half-made was kept")
    assert "No space left on device" in said
    assert "invoke clean" in said
