"""`invoke diff` on small disks."""

from __future__ import annotations

import gzip
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import Exit

from tests.sandbox import Done, Sandbox
from tests.tools import released
from tests.unit.test_diff import CHANGELOG, entry
from vmimage import PROJECT
from vmimage.commands.diff.report import tell_difference
from vmimage.formats.qcow2 import write_qcow2
from vmimage.stages.base import write_disk
from vmimage.util.settings import options

DOC = "usr/share/doc/tool/changelog.Debian.gz"
BEFORE: dict[str, bytes] = {
    "var/lib/dpkg/status": (entry("dpkg", "1") + entry("tool", "2-1") + entry("gone", "1")).encode(),
    "etc/vmimage/release.json": b'{"image": "toolbox", "components": [], "versions": {"helm": "v3.1"}}',
    "etc/same": b"same",
    "etc/bytes": b"before",
    "etc/mode": b"text",
    "etc/removed": b"text",
}
AFTER: dict[str, bytes] = {
    **BEFORE,
    "var/lib/dpkg/status": (entry("dpkg", "1") + entry("tool", "3-1") + entry("new", "1")).encode(),
    "etc/vmimage/release.json": b'{"image": "toolbox", "components": [], "versions": {"helm": "v3.2"}}',
    "etc/bytes": b"after!",
    "etc/\x1b[2Jname`|": b"text",
    DOC: gzip.compress(CHANGELOG),
}
del AFTER["etc/removed"]
NAMES = ("before.qcow2", "again.qcow2", "after.qcow2", "bare.qcow2", "broken.qcow2")


def write_image(
    folder: Path, name: str, files: dict[str, bytes], *, compression: str = "zstd", mode: int = 0o644
) -> None:
    tree, raw = folder / f"{name}.tree", folder / f"{name}.raw"
    for path, data in files.items():
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(mode if path == "etc/mode" else 0o644)
    write_disk(raw, tree)
    write_qcow2(raw, folder / f"{name}.qcow2", compression=compression)
    if name == "before":
        # The same disk in another file.
        write_qcow2(raw, folder / "again.qcow2", compression="zlib")
    raw.unlink()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_image(folder, "before", BEFORE)
    write_image(folder, "after", AFTER, mode=0o600)
    write_image(folder, "bare", {"etc/same": b"same"})
    write_image(folder, "broken", BEFORE | {"var/lib/dpkg/status": b"a web page"})
    assert {path.name for path in folder.glob("*.qcow2")} == set(NAMES)
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Sandbox:
    return Sandbox(PROJECT, tmp_path / "cache", tmp_path / "dist", {"VMIMAGE_ACCELERATOR": "tcg"})


@dataclass(frozen=True)
class Diff:
    """What `invoke diff` does, in this process: starting one takes longer than comparing such small disks."""

    here: Sandbox
    capsys: pytest.CaptureFixture[str]

    def __call__(self, a: Path | str, b: Path | str, **flags: Any) -> Done:
        """Compare two images; returns what the command would end with, and say."""
        status, said = 0, ""
        chosen = {"json": False, "markdown": False, "deep": False, "limit": 40} | flags
        self.capsys.readouterr()
        try:
            tell_difference(str(a), str(b), options(self.here.environment), **chosen)
        except Exit as end:
            status, said = end.code, end.message or ""
        seen = self.capsys.readouterr()
        return Done(status, seen.out, seen.err + said)


@pytest.fixture
def diff(here: Sandbox, capsys: pytest.CaptureFixture[str]) -> Diff:
    return Diff(here, capsys)


def test_the_same_disk_in_two_files_is_no_difference(here: Sandbox, images: Path) -> None:
    done = here.invoke("diff", str(images / "before.qcow2"), str(images / "again.qcow2"), "--json")
    assert done.returncode == 0, done.stderr
    result = done.event("result")
    assert result["same"] is True
    assert result["images"][0]["sizes"]["qcow2"] != result["images"][1]["sizes"]["qcow2"]


def test_what_differs_for_machines(diff: Diff, images: Path) -> None:
    done = diff(images / "before.qcow2", images / "after.qcow2", json=True)
    assert done.returncode == 7, done.stderr
    found = {name: [event for event in done.events if event["event"] == name] for name in ("package", "pin", "file")}
    assert [(e["name"], e["change"], e["before"], e["after"], e["urgency"]) for e in found["package"]] == [
        ("gone", "removed", "1", "", ""),
        ("new", "added", "", "1", ""),
        ("tool", "upgraded", "2-1", "3-1", "high"),
    ]
    assert [(e["name"], e["before"], e["after"]) for e in found["pin"]] == [("helm", "v3.1", "v3.2")]
    files = {event["path"]: event for event in found["file"]}
    assert files["/etc/bytes"]["differing"] == ["sha256"]
    assert files["/etc/mode"]["before"]["mode"] == "0644"
    assert files["/etc/mode"]["after"]["mode"] == "0600"
    assert files["/etc/removed"]["change"] == "removed"
    assert files["/etc/\x1b[2Jname`|"]["change"] == "added"
    assert not {"/etc/same", "/etc"} & set(files)
    assert done.event("result")["files"]["removed"] == 1


def test_what_differs_for_people_and_as_markdown(here: Sandbox, images: Path) -> None:
    names = [str(images / "before.qcow2"), str(images / "after.qcow2")]
    done, markdown = here.invoke("diff", *names, "--limit", "2"), here.invoke("diff", *names, "--markdown")
    assert (done.returncode, markdown.returncode) == (7, 7)
    for line in ("Pins: 1 changed", "Packages: 1 upgraded, 1 added, 1 removed", "and 1 more: --limit 0 shows all"):
        assert line in done.stdout
    assert "| `upgraded` | `tool` | `2-1` | `3-1` | `high` |" in markdown.stdout
    assert "``/etc/\\x1b[2Jname`\\x7c``" in markdown.stdout
    assert "\x1b" not in done.stdout + markdown.stdout
    assert markdown.stdout.rstrip().endswith("The images differ.")


def test_image_that_does_not_tell_its_packages(diff: Diff, images: Path) -> None:
    done = diff(images / "bare.qcow2", images / "after.qcow2", json=True)
    assert done.returncode == 7
    assert [event for event in done.events if event["event"] in ("package", "pin")] == []
    assert len(done.event("result")["not_compared"]) == 2


def test_releases_by_their_names(diff: Diff, here: Sandbox, images: Path) -> None:
    for version, name in (("20261127-01234567", "before"), ("20261128-01234567", "again")):
        body = (images / f"{name}.qcow2").read_bytes()
        pins = {"helm": {"version": "v3.1", "sha256": version[:8] * 8}}
        released(here.dist, "toolbox", version, body, pins=pins)
    done = diff("toolbox/20261127-01234567", here.dist / "toolbox" / "20261128-01234567")
    assert done.returncode == 7
    assert "Pins: 1 changed" in done.stdout, "another file under the same version"
    assert diff("toolbox", "toolbox").returncode == 0


def test_file_that_is_not_the_released_one(diff: Diff, here: Sandbox, images: Path) -> None:
    folder = released(here.dist, "toolbox", "20261127-01234567", b"x" * 100)
    (folder / "toolbox-20261127-01234567-amd64.qcow2").write_bytes((images / "before.qcow2").read_bytes())
    done = diff("toolbox", images / "before.qcow2")
    assert done.returncode == 6
    assert "is not what its manifest says" in done.stderr


def test_deep_gives_diffoscope_the_files_that_differ(
    diff: Diff, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    stand_in = programs / "diffoscope"
    stand_in.write_text(
        '#!/bin/sh\nfor last; do before=$file file=$last; done\ntouch "$TMPDIR/writes" || exit 2\n'
        'tar tf "$before"; tar xOf "$file" ./etc/bytes\nexit 1\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    done = diff(images / "before.qcow2", images / "after.qcow2", deep=True, json=True)
    assert done.returncode == 7, done.stderr
    said = done.event("deep")["text"]
    assert "./etc/removed" in said
    assert "./etc/same" not in said
    assert said.endswith("after!")
    stand_in.write_text("#!/bin/sh\necho it broke\nexit 2\n")
    done = diff(images / "before.qcow2", images / "after.qcow2", deep=True)
    assert done.returncode == 6
    assert "diffoscope failed with exit status 2: it broke" in done.stderr


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        ({"json": True, "markdown": True}, 2, "--json and --markdown: one of them"),
        ({"limit": -1}, 2, "--limit -1"),
        ({"deep": True}, 3, "--deep needs diffoscope, which is not installed"),
    ],
)
def test_wrong_options(diff: Diff, images: Path, flags: dict[str, Any], status: int, said: str) -> None:
    if "deep" in flags and shutil.which("diffoscope"):
        pytest.skip("it is installed here")
    done = diff(images / "before.qcow2", images / "again.qcow2", **flags)
    assert done.returncode == status
    assert said in done.stderr + done.stdout


@pytest.mark.parametrize("name", ["broken.qcow2", "none.qcow2", "cut.qcow2", "text.ova"])
def test_what_is_no_image(diff: Diff, here: Sandbox, images: Path, tmp_path: Path, name: str) -> None:
    path = images / name
    if name == "cut.qcow2":
        path = tmp_path / name
        path.write_bytes((images / "before.qcow2").read_bytes()[:100_000])
    if name == "text.ova":
        path = tmp_path / name
        path.write_text("text")
    done = diff(images / "before.qcow2", path)
    assert done.returncode == (2 if name == "none.qcow2" else 6)
    assert name == "broken.qcow2" or name in done.stderr
    assert "Traceback" not in done.stderr
    assert not [*(here.cache / "work").iterdir()]
