from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from vmimage.stages.release import dist as releasing
from vmimage.stages.release.dist import (
    Release,
    choose,
    fill_release,
    find_release,
    is_of,
    latest_releases,
    publish_release,
    publishing,
    releases,
    sweep,
    version_of,
)
from vmimage.util.errors import InputError, VerifyError

BODY = b"an image"
DIGEST = hashlib.sha256(BODY).hexdigest()
VERDICT = {
    "passed": True,
    "files": {"qcow2": {"sha256": DIGEST}},
    "accelerator": "tcg",
    "checks": [{"name": "qcow2-virtio-bios", "seconds_to_ssh": 60.1, "tests": 20, "failures": []}],
}
DAY = date(2026, 11, 23)
KEY = "0123456789abcdef"


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "toolbox-amd64.qcow2").write_bytes(BODY)
    return folder


def make(export: Path, dist: Path, *, verdict: object = None, today: date = DAY) -> Release:
    manifest = {
        "summary": "s", "suite": "trixie", "arch": "amd64", "released": "now",
        "machine": {"cpus": 2, "memory": "2 GiB"},
        "pins": {"kubectl": {"version": "v1"}}, "components": ["sshfs"], "packages": {"sshfs": "3.7"},
    }  # fmt: skip
    files: dict[str, dict[str, object]] = {
        "qcow2": {"name": "toolbox-amd64.qcow2", "bytes": len(BODY), "sha256": DIGEST}
    }
    version = version_of(KEY, today)
    return publish_release(
        dist / "toolbox",
        version,
        lambda work: fill_release(
            work,
            image="toolbox",
            arch="amd64",
            version=version,
            export=export,
            files=files,
            verdict=verdict or VERDICT,  # type: ignore[arg-type]
            manifest=manifest,
        ),
    )


def test_release_is_whole(export: Path, tmp_path: Path) -> None:
    done = make(export, tmp_path / "dist")
    assert done.path.name == f"20261123-{KEY[:8]}"
    names = {path.name for path in done.path.iterdir()}
    assert names == {f"toolbox-{done.version}-amd64.qcow2", "manifest.json", "README.md", "SHA256SUMS"}
    assert json.loads((done.path / "manifest.json").read_text())["files"]["qcow2"]["sha256"] == DIGEST
    summed = names - {"SHA256SUMS"}
    sums = [f"{hashlib.sha256((done.path / name).read_bytes()).hexdigest()}  {name}" for name in sorted(summed)]
    assert (done.path / "SHA256SUMS").read_text().splitlines() == sums
    assert (tmp_path / "dist/toolbox/latest").resolve() == done.path
    readme = (done.path / "README.md").read_text()
    assert done.file("qcow2").name in readme
    assert DIGEST in readme


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        (VERDICT | {"passed": False}, "no passing verdict"),
        (VERDICT | {"passed": "yes"}, "no passing verdict"),
        ({"files": VERDICT["files"]}, "no passing verdict"),
        (VERDICT | {"files": {"qcow2": {"sha256": "0" * 64}}}, "is not the file that was verified"),
    ],
)
def test_without_a_verdict_on_these_bytes_nothing_is_released(
    export: Path, tmp_path: Path, verdict: object, why: str
) -> None:
    with pytest.raises(VerifyError, match=why) as refused:
        make(export, tmp_path / "dist", verdict=verdict)
    assert refused.value.exit_code == 6
    assert not list((tmp_path / "dist/toolbox").iterdir())


def test_file_changed_after_its_verdict_is_not_released(export: Path, tmp_path: Path) -> None:
    first = make(export, tmp_path / "dist")
    (export / "toolbox-amd64.qcow2").unlink()
    (export / "toolbox-amd64.qcow2").write_bytes(BODY + b"!")
    with pytest.raises(VerifyError, match="is not the file that was verified"):
        make(export, tmp_path / "dist", today=date(2026, 11, 24))
    assert [release.version for release in releases(tmp_path / "dist")] == [first.version]
    assert (tmp_path / "dist/toolbox/latest").resolve() == first.path


def test_failure_on_the_way_leaves_no_half_release(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(releasing, "sync_tree", full)
    with pytest.raises(OSError, match="No space"):
        make(export, tmp_path / "dist")
    assert not list((tmp_path / "dist/toolbox").iterdir())


def test_release_serves_what_it_is_proven_for_and_is_not_proven_less_later(export: Path, tmp_path: Path) -> None:
    release = make(export, tmp_path / "dist")
    assert is_of(release, VERDICT, check=True)
    more = {**VERDICT, "checks": [*VERDICT["checks"], {"name": "qcow2-virtio-uefi"}]}  # type: ignore[misc]
    assert not is_of(release, more, check=False), "it is released again, with the fuller verdict"
    fuller = replace(release, manifest={**release.manifest, "verdict": more})
    assert is_of(fuller, VERDICT, check=False), "which stays"
    assert not is_of(release, {**VERDICT, "files": {"qcow2": {"sha256": "0" * 64}}}, check=False)
    release.file("qcow2").write_bytes(b"another")
    assert not is_of(release, VERDICT, check=False)


def test_latest_moves_on(export: Path, tmp_path: Path) -> None:
    make(export, tmp_path / "dist")
    second = make(export, tmp_path / "dist", today=date(2026, 11, 24))
    assert (tmp_path / "dist/toolbox/latest").readlink() == Path(second.version)
    assert len(releases(tmp_path / "dist")) == 2
    found = find_release(tmp_path / "dist", "toolbox", KEY)
    assert found
    assert found.version == second.version


def test_sweep_removes_what_a_killed_release_left(export: Path, tmp_path: Path) -> None:
    done = make(export, tmp_path / "dist")
    folder = tmp_path / "dist/toolbox"
    (folder / ".20261123-aaaaaaaa-bbbbbbbb").mkdir()
    (folder / ".20261123-aaaaaaaa-bbbbbbbb" / "half").write_text("")
    (folder / ".latest-12345678").symlink_to("x")
    (folder / ".keep-me").write_text("")
    assert [release.version for release in releases(tmp_path / "dist")] == [done.version]
    sweep(tmp_path / "dist")
    assert {path.name for path in folder.iterdir()} == {done.version, "latest", ".keep-me"}


def test_sweep_leaves_alone_what_another_process_publishes(export: Path, tmp_path: Path) -> None:
    make(export, tmp_path / "dist")
    folder = tmp_path / "dist/toolbox"
    with publishing(folder) as alone:
        assert alone
        half = folder / ".20261123-aaaaaaaa-bbbbbbbb"
        half.mkdir()
        sweep(tmp_path / "dist")
        assert half.exists()
        with publishing(folder) as second:
            assert not second
    sweep(tmp_path / "dist")
    assert not list(folder.glob(".*"))


def test_latest_is_where_the_link_leads_and_else_what_was_released_last(tmp_path: Path) -> None:
    folder = tmp_path / "dist/toolbox"
    # Of one day: the names do not sort by time.
    for version, hour in (("20261123-ffffffff", "08"), ("20261123-00000000", "09"), ("20261123-88888888", "10")):
        (folder / version).mkdir(parents=True)
        facts = {"released": f"2026-11-23T{hour}:00:00+00:00"}
        (folder / version / "manifest.json").write_text(json.dumps(facts))
    assert [release.version[-1] for release in releases(tmp_path / "dist")] == ["f", "0", "8"]
    assert [release.version for release in latest_releases(tmp_path / "dist")] == ["20261123-88888888"]
    releasing.point_latest(folder, "20261123-ffffffff")
    assert [release.version for release in latest_releases(tmp_path / "dist")] == ["20261123-ffffffff"]


def test_choosing_a_release(export: Path, tmp_path: Path) -> None:
    done = make(export, tmp_path / "dist")
    assert choose(tmp_path / "dist", "toolbox", None).version == done.version
    assert choose(tmp_path / "dist", "toolbox", done.version).path == done.path
    with pytest.raises(InputError, match="holds no release 20200101-00000000 of toolbox"):
        choose(tmp_path / "dist", "toolbox", "20200101-00000000")
    with pytest.raises(InputError, match="holds no release latest of other"):
        choose(tmp_path / "dist", "other", None)
