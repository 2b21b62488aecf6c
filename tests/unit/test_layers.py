"""Layers of disks, made by qemu-img and qemu-io instead of a running machine."""

from __future__ import annotations

import os
import shutil
from datetime import date
from pathlib import Path

import pytest

from tests.tools import step_into
from vmimage import PROJECT
from vmimage.layers import DISK, Layers
from vmimage.plan import Plan, make_plan
from vmimage.run import run
from vmimage.spec import load_spec
from vmimage.store import LAYER, Result, Store

SIZE = 1 << 20
TOOLS = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "1.0")


def plan_of(image: str) -> Plan:
    return make_plan(load_spec(PROJECT / "images.yaml"), image, project=PROJECT, tools=TOOLS, today=date(2026, 11, 23))


@pytest.fixture
def plan() -> Plan:
    return plan_of("toolbox")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def base(store: Store, plan: Plan) -> Result:
    return base_of(b"b", store, plan)


def base_of(content: bytes, store: Store, plan: Plan) -> Result:
    def make(work: Path) -> dict[str, object]:
        (work / "disk.raw").write_bytes(content * SIZE)
        return {}

    return store.get_or_make("base", plan.base_stage.inputs, make, step_into([]))


def bake(layers: Layers, plan: Plan, folder: Path, last: int) -> None:
    """Write the number of each step to the disk, as the machine of a bake would: each file on the one before."""
    folder.mkdir()
    beneath, kind = layers.top
    for index, step in enumerate(plan.steps[:last]):
        if index < layers.done:
            continue
        file = folder / f"{index}.qcow2"
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", beneath, "-F", kind, file])
        run(["qemu-io", "-f", "qcow2", "-c", f"write -q -P {index + 1} {index * 4096} 4096", file])
        layers.add(step, file)
        beneath, kind = file, "qcow2"
    layers.close()


def content(disk: Path, folder: Path) -> bytes:
    run(["qemu-img", "convert", "-O", "raw", disk, folder / "raw"])
    return (folder / "raw").read_bytes()


def test_a_later_bake_begins_behind_the_last_step_that_was_done(
    plan: Plan, store: Store, base: Result, tmp_path: Path
) -> None:
    layers = Layers(plan, base, store, step_into([]))
    assert (layers.done, layers.top) == (0, (base.path / "disk.raw", "raw"))
    bake(layers, plan, tmp_path / "first", last=2)
    again = Layers(plan, base, store, step_into([]))
    assert again.done == 2
    disk, kind = again.top
    assert kind == "qcow2"
    assert content(disk, tmp_path) == b"\1" * 4096 + b"\2" * 4096 + b"b" * (SIZE - 8192)
    again.close()


def test_another_image_shares_the_layers_of_the_steps_that_both_begin_with(
    plan: Plan, store: Store, base: Result, tmp_path: Path
) -> None:
    other = plan_of("dev-env")
    assert [step.name for step in other.steps[:4]] == [step.name for step in plan.steps[:4]]
    bake(Layers(plan, base, store, step_into([])), plan, tmp_path / "first", last=5)
    layers = Layers(other, base, store, step_into([]))
    layers.close()
    assert layers.done == 4


def test_cache_may_be_moved(plan: Plan, store: Store, base: Result, tmp_path: Path) -> None:
    bake(Layers(plan, base, store, step_into([])), plan, tmp_path / "first", last=2)
    key = plan.steps[1].layer.key
    shutil.move(store.root, tmp_path / "elsewhere")
    assert content(tmp_path / "elsewhere" / LAYER / key / DISK, tmp_path)[:8192] == b"\1" * 4096 + b"\2" * 4096


def test_damaged_layer_and_those_on_it_are_made_again(plan: Plan, store: Store, base: Result, tmp_path: Path) -> None:
    bake(Layers(plan, base, store, step_into([])), plan, tmp_path / "first", last=3)
    store.close()
    damaged = store.root / LAYER / plan.steps[1].layer.key / DISK
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    again = Layers(plan, base, store, step_into([]))
    again.close()
    assert again.done == 1
    assert not (store.root / LAYER / plan.steps[2].layer.key).exists()


def test_layer_of_which_only_the_bytes_changed_is_made_again(
    plan: Plan, store: Store, base: Result, tmp_path: Path
) -> None:
    bake(Layers(plan, base, store, step_into([])), plan, tmp_path / "first", last=2)
    store.close()
    damaged = store.root / LAYER / plan.steps[1].layer.key / DISK
    before = damaged.stat()
    run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 4096 4096", damaged])
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert damaged.stat().st_size == before.st_size
    again = Layers(plan, base, store, step_into([]))
    again.close()
    assert again.done == 1


def test_layers_on_another_base_of_the_same_key_are_not_used(
    plan: Plan, store: Store, base: Result, tmp_path: Path
) -> None:
    bake(Layers(plan, base, store, step_into([])), plan, tmp_path / "first", last=2)
    store.close()
    # By hand: the store itself would remove the layers, too.
    shutil.rmtree(base.path)
    layers = Layers(plan, base_of(b"c", store, plan), store, step_into([]))
    layers.close()
    assert layers.done == 0


def test_steps_are_done_again_when_asked(plan: Plan, store: Store, base: Result, tmp_path: Path) -> None:
    first = Layers(plan, base, store, step_into([]))
    bake(first, plan, tmp_path / "first", last=3)
    again = Layers(plan, base, store, step_into([]), start=1)
    again.close()
    assert again.done == 1


def test_who_comes_second_waits_for_the_layer_and_begins_behind_it(
    plan: Plan, store: Store, base: Result, tmp_path: Path
) -> None:
    first = Layers(plan, base, store, step_into([]))
    assert store.try_lock(f"{LAYER}-{plan.steps[0].layer.key}") is None, "others wait for it"
    bake(first, plan, tmp_path / "first", last=1)
    lock = store.try_lock(f"{LAYER}-{plan.steps[0].layer.key}")
    assert lock
    lock.close()
    second = Layers(plan, base, store, step_into([]))
    second.close()
    assert second.done == 1


def test_layers_on_bytes_that_are_not_in_the_cache_are_not_kept(
    plan: Plan, store: Store, base: Result, tmp_path: Path
) -> None:
    ours = Layers(plan, base, store, step_into([]))
    ours.close()
    bake(Layers(plan, base, store, step_into([])), plan, tmp_path / "theirs", last=1)
    bake(ours, plan, tmp_path / "ours", last=2)
    assert not ours.kept_all
    assert store.find(LAYER, plan.steps[0].layer.inputs)
    assert not store.find(LAYER, plan.steps[1].layer.inputs)
