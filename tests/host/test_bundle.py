"""`invoke bundle` on the host and `dev-env update` in the guest, on files that stand for the programs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from dev_env import Failure, journal, update

from tests.tools import update_bundle
from vmimage import PROJECT
from vmimage.commands.bundle import write_bundle
from vmimage.plan import Plan, make_plan
from vmimage.spec.load import load_spec
from vmimage.util.errors import InputError


def said(line: str) -> None:
    """Take what is reported, and do nothing with it."""


def program(version: str) -> bytes:
    return f"#!/bin/sh\necho tool version {version}\n".encode()


@pytest.fixture
def plan() -> Plan:
    tools = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "1.0")
    spec = load_spec(PROJECT / "images.yaml")
    return make_plan(spec, "dev-env", project=PROJECT, tools=tools, today=date(2026, 11, 23))


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with old programs where the guest would have them; k3s is restarted by nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("k3s", "helm"):
        (folder / name).write_bytes(program("v1.0.0"))
        (folder / name).chmod(0o755)
    monkeypatch.setattr(update, "TARGETS", {name: folder / name for name in ("k3s", "helm")})
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("os.chown", lambda *_: None)
    monkeypatch.setattr(update, "DATASTORE", tmp_path / "db")
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "state.db").write_text("old")
    monkeypatch.setattr(journal, "STATE", tmp_path / "state")
    monkeypatch.setattr(update, "_stop", lambda: None)
    monkeypatch.setattr(update, "_start", lambda *_: None)
    return folder


def bundle(path: Path, files: dict[str, bytes], **wrong: str) -> Path:
    return update_bundle(path, files, version="v1.1.0", **wrong)


def test_bundle_holds_the_pins_and_the_guest_takes_it(plan: Plan, tmp_path: Path) -> None:
    files = {pin.name: tmp_path / pin.name for pin in plan.files}
    for name, path in files.items():
        path.write_bytes(name.encode() * 1000)
    pins = tuple(
        pin.__class__(**{**vars(pin), "sha256": hashlib.sha256(files[pin.name].read_bytes()).hexdigest()})
        for pin in plan.files
    )
    digest = write_bundle(plan.__class__(**{**vars(plan), "files": pins}), files, tmp_path / "update.tar")
    assert digest == hashlib.sha256((tmp_path / "update.tar").read_bytes()).hexdigest()
    (tmp_path / "out").mkdir()
    found = update.unpacked(tmp_path / "update.tar", tmp_path / "out")
    assert {name: version for name, (_, version) in found.items()} == plan.versions
    with pytest.raises(InputError, match="exists"):
        write_bundle(plan, files, tmp_path / "update.tar")


def test_programs_are_replaced(targets: Path, tmp_path: Path) -> None:
    path = bundle(tmp_path / "update.tar", {"k3s": program("v1.1.0"), "helm": program("v1.1.0")})
    assert update.update(str(path), "", said) == ["k3s v1.1.0", "helm v1.1.0"]
    assert (targets / "k3s").read_bytes() == program("v1.1.0")
    assert sorted(each.name for each in targets.iterdir()) == ["helm", "k3s"]


def test_all_is_as_before_when_the_cluster_does_not_come_up(
    targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def start(_: Callable[[str], None], seconds: float) -> None:
        starts.append((targets / "k3s").read_bytes())
        if len(starts) == 1:
            assert seconds == 5
            (tmp_path / "db" / "state.db").write_text("what only the new one understands")
            raise Failure("the cluster is not ready")

    monkeypatch.setattr(update, "_start", start)
    path = bundle(tmp_path / "update.tar", {"k3s": program("v1.1.0"), "helm": program("v1.1.0")})
    with pytest.raises(Failure, match="all is as it was before: the cluster is not ready"):
        update.update(str(path), "", said, seconds=5)
    assert (tmp_path / "db" / "state.db").read_text() == "old"
    assert not (tmp_path / ".db.before-update").exists()
    assert starts == [program("v1.1.0"), program("v1.0.0")]
    assert (targets / "helm").read_bytes() == program("v1.0.0")
    assert sorted(each.name for each in targets.iterdir()) == ["helm", "k3s"]


def test_full_disk_changes_nothing(targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copy2

    def full(source: Path, to: Path) -> None:
        if to.name == ".helm.before-update":
            raise OSError("No space left on device")
        copy(source, to)

    monkeypatch.setattr(shutil, "copy2", full)
    path = bundle(tmp_path / "update.tar", {"k3s": program("v1.1.0"), "helm": program("v1.1.0")})
    with pytest.raises(Failure, match="all is as it was before: No space left"):
        update.update(str(path), "", said)
    assert {each.name: each.read_bytes() for each in targets.iterdir()} == dict.fromkeys(
        ("k3s", "helm"), program("v1.0.0")
    )
    assert (tmp_path / "db" / "state.db").read_text() == "old"


def test_cluster_that_does_not_come_up_with_the_old_programs_either_is_told(
    targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        raise Failure(f"not ready with {(targets / 'k3s').read_text().split()[-1]}")

    monkeypatch.setattr(update, "_start", start)
    path = bundle(tmp_path / "update.tar", {"k3s": program("v1.1.0")})
    with pytest.raises(
        Failure, match=r"failed: not ready with v1\.1\.0\n.* not ready with them: not ready with v1\.0\.0"
    ):
        update.update(str(path), "", said)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: bundle(path, {"k3s": program("v1.1.0")}, k3s="0" * 64), "k3s is not what update.json says"),
        (lambda path: bundle(path, {"k3s": program("v9.9.9")}), "k3s of the bundle says another version than v1.1.0"),
        (lambda path: bundle(path, {"passwd": b"x"}), "is no bundle: it holds passwd"),
        (lambda path: bundle(path, {}), "is no bundle: it holds nothing"),
        (lambda path: path.write_bytes(b"x" * 2000) and path, "is no bundle"),
        (lambda path: path, "there is no file"),
    ],
)
def test_bad_bundle_changes_nothing(make: Callable[[Path], Path], why: str, targets: Path, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=why):
        update.update(str(make(tmp_path / "update.tar")), "", said)
    assert (targets / "k3s").read_bytes() == program("v1.0.0")


def test_bundle_with_another_digest_and_older_programs_are_refused(targets: Path, tmp_path: Path) -> None:
    path = bundle(tmp_path / "update.tar", {"helm": program("v1.1.0")})
    with pytest.raises(Failure, match="is another bundle"):
        update.update(str(path), "0" * 64, said)
    (targets / "helm").write_bytes(program("v2.0.0"))
    with pytest.raises(Failure, match=r"helm v1\.1\.0 is older than v2\.0\.0"):
        update.update(str(path), "", said)
    assert update.update(str(path), "", said, allow_older=True) == ["helm v1.1.0"]


def test_url_needs_a_digest_and_root_is_needed(targets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failure, match="needs --sha256"):
        update.update("https://x.invalid/update.tar", "", said)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Failure, match="only root"):
        update.update("x", "", said)


@pytest.mark.parametrize(
    ("older", "newer"), [("v1.36.4+k3s1", "v1.36.10+k3s1"), ("v1.36.4+k3s1", "v1.36.4+k3s2"), ("v3.9.0", "v4.0.0")]
)
def test_order_of_versions(older: str, newer: str) -> None:
    assert update.order(older) < update.order(newer)
