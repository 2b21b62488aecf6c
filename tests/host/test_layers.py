"""Layers of disks, made by qemu-img and qemu-io instead of a running machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.tools import context_in, plan_of, step_into
from vmimage.cache.result import LAYER, Result
from vmimage.cache.store import Store
from vmimage.stages.bake.layers import DISK, Layer, Layers, layers_of
from vmimage.stages.base import base_stage
from vmimage.stages.stage import BuildContext
from vmimage.util.run import run

SIZE = 1 << 20
Wanted = tuple[Layer, ...]


@pytest.fixture
def context(tmp_path: Path) -> BuildContext:
    return context_in(tmp_path)


def wanted_of(image: str, context: BuildContext) -> Wanted:
    plan = plan_of(image)
    return layers_of(plan, base_stage(plan, context))


@pytest.fixture
def wanted(context: BuildContext) -> Wanted:
    """The layers of toolbox."""
    return wanted_of("toolbox", context)


@pytest.fixture
def store(context: BuildContext) -> Store:
    return context.store


@pytest.fixture
def base(store: Store, wanted: Wanted) -> Result:
    return base_of(b"b", store, wanted)


def base_of(content: bytes, store: Store, wanted: Wanted) -> Result:
    base = wanted[0].after
    assert base

    def make(work: Path) -> dict[str, object]:
        (work / "disk.raw").write_bytes(content * SIZE)
        return {}

    return store.get_or_make("base", base.inputs, make, step_into([]))


def bake(layers: Layers, wanted: Wanted, folder: Path, last: int) -> None:
    """Write the number of each step to the disk, as the machine of a bake would: each file on the one before."""
    folder.mkdir()
    beneath, kind = layers.top
    for index, layer in enumerate(wanted[:last]):
        if index < layers.done:
            continue
        file = folder / f"{index}.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", beneath, "-F", kind, file])
        run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P {index + 1} {index * 4096} 4096", file])
        layers.add(layer, file)
        beneath, kind = file, "qcow2"
    layers.close()


def content(disk: Path, folder: Path) -> bytes:
    run(["qemu-img", "convert", "-O", "raw", disk, folder / "raw"])
    return (folder / "raw").read_bytes()


def test_a_later_bake_begins_behind_the_last_step_that_was_done(
    wanted: Wanted, store: Store, base: Result, tmp_path: Path
) -> None:
    layers = Layers(wanted, base, store, step_into([]))
    assert (layers.done, layers.top) == (0, (base.path / "disk.raw", "raw"))
    bake(layers, wanted, tmp_path / "first", last=2)
    again = Layers(wanted, base, store, step_into([]))
    assert again.done == 2
    disk, kind = again.top
    assert kind == "qcow2"
    assert content(disk, tmp_path) == b"\1" * 4096 + b"\2" * 4096 + b"b" * (SIZE - 8192)
    again.close()


def test_another_image_shares_the_layers_of_the_steps_that_both_begin_with(
    wanted: Wanted, context: BuildContext, base: Result, tmp_path: Path
) -> None:
    store, other = context.store, wanted_of("dev-env", context)
    assert [layer.script for layer in other[:4]] == [layer.script for layer in wanted[:4]]
    bake(Layers(wanted, base, store, step_into([])), wanted, tmp_path / "first", last=5)
    layers = Layers(other, base, store, step_into([]))
    layers.close()
    assert layers.done == 4


def test_cache_may_be_moved(wanted: Wanted, store: Store, base: Result, tmp_path: Path) -> None:
    bake(Layers(wanted, base, store, step_into([])), wanted, tmp_path / "first", last=2)
    key = wanted[1].key
    shutil.move(store.root, tmp_path / "elsewhere")
    assert content(tmp_path / "elsewhere" / LAYER / key / DISK, tmp_path)[:8192] == b"\1" * 4096 + b"\2" * 4096


def test_damaged_layer_and_those_on_it_are_made_again(
    wanted: Wanted, store: Store, base: Result, tmp_path: Path
) -> None:
    bake(Layers(wanted, base, store, step_into([])), wanted, tmp_path / "first", last=3)
    store.close()
    damaged = store.root / LAYER / wanted[1].key / DISK
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    again = Layers(wanted, base, store, step_into([]))
    again.close()
    assert again.done == 1
    assert not (store.root / LAYER / wanted[2].key).exists()


def test_layer_of_which_only_the_bytes_changed_is_made_again(
    wanted: Wanted, store: Store, base: Result, tmp_path: Path
) -> None:
    bake(Layers(wanted, base, store, step_into([])), wanted, tmp_path / "first", last=2)
    store.close()
    damaged = store.root / LAYER / wanted[1].key / DISK
    before = damaged.stat()
    run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 4096 4096", damaged])
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert damaged.stat().st_size == before.st_size
    again = Layers(wanted, base, store, step_into([]))
    again.close()
    assert again.done == 1


def test_layers_on_another_base_of_the_same_key_are_not_used(
    wanted: Wanted, store: Store, base: Result, tmp_path: Path
) -> None:
    bake(Layers(wanted, base, store, step_into([])), wanted, tmp_path / "first", last=2)
    store.close()
    # By hand: the store itself would remove the layers, too.
    shutil.rmtree(base.path)
    layers = Layers(wanted, base_of(b"c", store, wanted), store, step_into([]))
    layers.close()
    assert layers.done == 0


def test_steps_are_done_again_when_asked(wanted: Wanted, store: Store, base: Result, tmp_path: Path) -> None:
    first = Layers(wanted, base, store, step_into([]))
    bake(first, wanted, tmp_path / "first", last=3)
    again = Layers(wanted, base, store, step_into([]), start=1)
    again.close()
    assert again.done == 1


def test_who_comes_second_waits_for_the_layer_and_begins_behind_it(
    wanted: Wanted, store: Store, base: Result, tmp_path: Path
) -> None:
    first = Layers(wanted, base, store, step_into([]))
    assert store.try_lock(f"{LAYER}-{wanted[0].key}") is None, "others wait for it"
    bake(first, wanted, tmp_path / "first", last=1)
    lock = store.try_lock(f"{LAYER}-{wanted[0].key}")
    assert lock
    lock.close()
    second = Layers(wanted, base, store, step_into([]))
    second.close()
    assert second.done == 1


def test_layers_on_bytes_that_are_not_in_the_cache_are_not_kept(
    wanted: Wanted, store: Store, base: Result, tmp_path: Path
) -> None:
    ours = Layers(wanted, base, store, step_into([]))
    ours.close()
    bake(Layers(wanted, base, store, step_into([])), wanted, tmp_path / "theirs", last=1)
    bake(ours, wanted, tmp_path / "ours", last=2)
    assert not ours.kept_all
    assert store.find(LAYER, wanted[0].inputs)
    assert not store.find(LAYER, wanted[1].inputs)
