from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests.tools import released
from vmimage.stages.release import dist as releasing
from vmimage.stages.release.contents import fill_release
from vmimage.stages.release.dist import (
    Release,
    choose,
    find_release,
    is_of,
    latest_releases,
    publish_release,
    publishing,
    releases,
    sweep,
)
from vmimage.stages.release.manifest import Manifest, PinFacts, verdict_of
from vmimage.stages.release.version import free_version, version_of
from vmimage.util.errors import BuildError, InputError, VerifyError

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


def make(
    export: Path, dist: Path, *, verdict: object = None, today: date = DAY, before: Manifest | None = None
) -> Release:
    manifest = {
        "summary": "s", "suite": "trixie", "arch": "amd64", "released": "now",
        "machine": {"cpus": 2, "memory": "2 GiB"},
        "pins": {"kubectl": {"version": "v1"}}, "components": ["sshfs"], "packages": {"sshfs": "3.7"},
    }  # fmt: skip
    files: dict[str, dict[str, object]] = {
        "qcow2": {"name": "toolbox-amd64.qcow2", "bytes": len(BODY), "sha256": DIGEST}
    }
    version = free_version(dist / "toolbox", version_of(KEY, today))
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
            sboms={".cdx.json": "{}", ".spdx.json": "{}"},
            before=before,
        ),
    )


def test_release_is_whole(export: Path, tmp_path: Path) -> None:
    done = make(export, tmp_path / "dist")
    assert done.path.name == f"20261123-{KEY[:8]}"
    names = {path.name for path in done.path.iterdir()}
    named = {f"toolbox-{done.version}-amd64{end}" for end in (".qcow2", ".cdx.json", ".spdx.json")}
    assert names == {*named, "manifest.json", "README.md", "SHA256SUMS"}
    assert json.loads((done.path / "manifest.json").read_text())["files"]["qcow2"]["sha256"] == DIGEST
    summed = names - {"SHA256SUMS"}
    sums = [f"{hashlib.sha256((done.path / name).read_bytes()).hexdigest()}  {name}" for name in sorted(summed)]
    assert (done.path / "SHA256SUMS").read_text().splitlines() == sums
    assert (tmp_path / "dist/toolbox/latest").resolve() == done.path
    readme = (done.path / "README.md").read_text()
    assert all(name in readme for name in named)
    assert DIGEST in readme
    assert "What changed" not in readme


def test_release_tells_what_changed_since_the_one_before(export: Path, tmp_path: Path) -> None:
    first = make(export, tmp_path / "dist").manifest
    pins = {"kubectl": PinFacts(version="v0"), "helm": PinFacts(version="v4")}
    packages = {"sshfs": "3.7", "odd": "1 | <b>"}
    before = first.model_copy(update={"pins": pins, "packages": packages})
    readme = (make(export, tmp_path / "later", before=before).path / "README.md").read_text()
    section = readme.partition(f"## What changed since {first.version}\n\n")[2].partition("\n\n")[0]
    assert section.splitlines() == [
        "| | was | is |",
        "|---|---|---|",
        "| `helm` | `v4` | - |",
        "| `kubectl` | `v0` | `v1` |",
        r"| `odd` | `1 \x7c <b>` | - |",
    ]
    same = (make(export, tmp_path / "same", before=first).path / "README.md").read_text()
    assert "The same versions of everything." in same


def test_release_tells_what_the_gate_saw(export: Path, tmp_path: Path) -> None:
    allowed = {"id": "CVE-2026-0001", "package": "curl", "reason": "no | pipe", "until": "2026-12-24"}
    seen = {"ran": True, "block": "fixed", "passed": 3, "allowed": [allowed]}
    readme = (
        make(export, tmp_path / "seen", verdict={**VERDICT, "vulnerabilities": seen}).path / "README.md"
    ).read_text()
    assert r"| CVE-2026-0001 | curl | `no \x7c pipe` | 2026-12-24 |" in readme
    assert "Others that Debian has not mended: 3." in readme
    for block, told in (("fixed", "none that Debian has mended."), ("open", "and none that it has not.")):
        none = {"ran": True, "block": block, "passed": 0, "allowed": []}
        done = make(export, tmp_path / block, verdict={**VERDICT, "vulnerabilities": none})
        assert told in (done.path / "README.md").read_text()
    not_run = {"ran": False, "why": "no network"}
    done = make(export, tmp_path / "not", verdict={**VERDICT, "vulnerabilities": not_run})
    assert "Known vulnerabilities: not checked" in (done.path / "README.md").read_text()
    assert json.loads((done.path / "manifest.json").read_text())["verdict"]["vulnerabilities"] == not_run


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
    fuller = replace(release, manifest=release.manifest.model_copy(update={"verdict": verdict_of(more)}))
    assert is_of(fuller, VERDICT, check=False), "which stays"
    assert not is_of(release, {**VERDICT, "files": {"qcow2": {"sha256": "0" * 64}}}, check=False)
    release.file("qcow2").unlink()
    release.file("qcow2").write_bytes(BODY[::-1])
    assert is_of(release, VERDICT, check=False)
    assert not is_of(release, VERDICT, check=True), "its bytes are others: it is released anew beside it"
    release.file("qcow2").write_bytes(b"another")
    assert not is_of(release, VERDICT, check=False)


def test_release_is_never_replaced_and_the_next_one_has_a_serial(export: Path, tmp_path: Path) -> None:
    first = make(export, tmp_path / "dist")
    inode = first.file("qcow2").stat().st_ino
    made = [make(export, tmp_path / "dist").version for _ in range(10)]
    assert made == [f"{first.version}.{serial}" for serial in range(2, 12)]
    assert [release.version for release in releases(tmp_path / "dist")] == [first.version, *made]
    assert first.file("qcow2").stat().st_ino == inode
    found = find_release(tmp_path / "dist", "toolbox", KEY)
    assert found
    assert found.version == f"{first.version}.11"
    with pytest.raises(BuildError, match="a release is never replaced"):
        publish_release(tmp_path / "dist/toolbox", first.version, copied(first.path))
    assert first.file("qcow2").stat().st_ino == inode
    assert not list((tmp_path / "dist/toolbox").glob(".*"))


def copied(folder: Path) -> Callable[[Path], dict[str, object]]:
    def fill(work: Path) -> dict[str, object]:
        shutil.copytree(folder, work, dirs_exist_ok=True)
        return {}

    return fill


@pytest.mark.parametrize("is_there", ["a folder", "a file", "a link elsewhere"])
def test_latest_that_is_not_ours_stays(export: Path, tmp_path: Path, is_there: str) -> None:
    latest = tmp_path / "dist/toolbox/latest"
    latest.parent.mkdir(parents=True)
    if is_there == "a folder":
        (latest / "x").mkdir(parents=True)
    elif is_there == "a file":
        latest.write_text("mine")
    else:
        latest.symlink_to(tmp_path)
    done = make(export, tmp_path / "dist")
    assert latest.is_dir() == (is_there != "a file")
    assert latest.is_symlink() == (is_there == "a link elsewhere")
    assert choose(tmp_path / "dist", "toolbox", None).version == done.version


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
        released(tmp_path / "dist", "toolbox", version, released=f"2026-11-23T{hour}:00:00+00:00")
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
    (tmp_path / "dist/toolbox/latest").unlink()
    assert choose(tmp_path / "dist", "toolbox", "latest").version == done.version


GOOD = "20261127-01234567"


def test_links_of_latest_that_lead_in_a_circle_or_nowhere(tmp_path: Path) -> None:
    good = released(tmp_path, "toolbox", GOOD)
    for target in ("latest", "20200101-00000000", "/", f"../toolbox/{GOOD}"):
        (tmp_path / "toolbox/latest").symlink_to(target)
        assert [release.path for release in latest_releases(tmp_path)] == [good]
        (tmp_path / "toolbox/latest").unlink()


def test_file_of_a_release_that_is_gone_or_a_link_is_told(tmp_path: Path) -> None:
    released(tmp_path, "toolbox", GOOD)
    release = choose(tmp_path, "toolbox", None)
    path = release.require_file("qcow2")
    path.unlink()
    with pytest.raises(VerifyError, match="is gone, so toolbox 20261127-01234567 is damaged"):
        release.require_file("qcow2")
    path.symlink_to("/etc/passwd")
    with pytest.raises(VerifyError, match="is a link, so"):
        release.require_file("qcow2")
