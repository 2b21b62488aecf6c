"""What is in dist/ and is no release: told, left out, and never followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.tools import released
from vmimage.stages.release.dist import choose, latest_releases, look
from vmimage.util.errors import VerifyError

DIGEST = "ab" * 32
GOOD = "20261127-01234567"
BAD = "20261128-01234567"
FILE = {"name": "a.qcow2", "bytes": 1, "sha256": DIGEST}
# What a manifest says otherwise -> why it does not fit.
MISFITS: dict[str, dict[str, object]] = {
    "image: Input should be a valid string": {"image": 7},
    "is that of other": {"image": "other"},
    "is that of toolbox 20261127": {"version": GOOD},
    "version: no version": {"version": "../../x"},
    "files: Field required": {"files": None},
    "files: Dictionary should have at least 1": {"files": {}},
    "files: none of them is a qcow2": {"files": {"floppy": FILE}},
    "files: two have one name": {"files": {"qcow2": FILE, "ova": FILE}},
    "files.qcow2.name: String should match": {"files": {"qcow2": FILE | {"name": "../a"}}},
    "files.qcow2.name: String should match pattern": {"files": {"qcow2": FILE | {"name": "/etc/passwd"}}},
    "name: String should match": {"files": {"qcow2": FILE | {"name": "a\x1b[2J"}}},
    "name: String should have at most": {"files": {"qcow2": FILE | {"name": "a" * 300}}},
    "bytes: Input should be a valid integer": {"files": {"qcow2": FILE | {"bytes": "1"}}},
    "bytes: Input should be greater": {"files": {"qcow2": FILE | {"bytes": -1}}},
    "bytes: Input should be less": {"files": {"qcow2": FILE | {"bytes": 1 << 62}}},
    "sha256: String should match": {"files": {"qcow2": FILE | {"sha256": DIGEST.upper()}}},
    "machine.memory: String should match": {"machine": {"cpus": 2, "memory": "4GiB"}},
    "machine.memory: String should have at most": {"machine": {"cpus": 2, "memory": "4" * 5000 + " GiB"}},
    "machine.cpus: Input should be a valid": {"machine": {"cpus": True, "memory": "4 GiB"}},
    "machine.ports: no range": {"machine": {"cpus": 1, "memory": "4 GiB", "ports": "9000-8000"}},
    "verdict.passed: Input should be True": {"verdict": {"passed": False, "files": {}, "checks": []}},
    "verdict.checks.0.name: Field required": {"verdict": {"passed": True, "files": {}, "checks": [{}]}},
    "pins.kubectl: Input should be": {"pins": {"kubectl": "v1"}},
    "stages.bake.key: String should match": {"stages": {"bake": {"key": "../../x"}}},
}


@pytest.mark.parametrize("why", MISFITS)
def test_manifest_that_does_not_fit_is_left_out_with_the_reason(why: str, tmp_path: Path) -> None:
    good = released(tmp_path, "toolbox", GOOD)
    bad = released(tmp_path, "toolbox", BAD, **MISFITS[why])
    if MISFITS[why] == {"files": None}:
        text = (bad / "manifest.json").read_text()
        (bad / "manifest.json").write_text(text.replace('"files": null, ', ""))
    check_left_out(good, bad, why)


TEXTS = {
    "": "no JSON",
    "[]": "Input should be a valid",
    '[{"Config": "c.json", "RepoTags": ["a:1"]}]': "Input should be a valid",
    '{"image": NaN}': "NaN is no number",
    '{"image": 1e999}': "too large a number",
    '{"image": "a", "image": "b"}': "twice",
    "[" * 100_000: "too deep",
    '{"bytes": ' + "9" * 5000 + "}": "Exceeds the limit",
    "\xff": "not UTF-8",
    " " * (5 << 20): "larger than",
}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_text_that_is_no_manifest_is_left_out(text: str, tmp_path: Path) -> None:
    good, bad = released(tmp_path, "toolbox", GOOD), tmp_path / "toolbox" / BAD
    bad.mkdir()
    (bad / "manifest.json").write_bytes(text.encode("latin-1"))
    check_left_out(good, bad, TEXTS[text])


@pytest.mark.parametrize(
    ("kind", "why"),
    [("none", "No such file"), ("pipe", "no regular"), ("link", "symbolic link"), ("folder", "no regular"),
     ("device", "symbolic link"), ("socket", "no regular"), ("linked folder", "no folder"), ("file", "no folder")],
)  # fmt: skip
def test_thing_in_the_place_of_a_manifest_is_not_followed_or_waited_for(kind: str, why: str, tmp_path: Path) -> None:
    good, bad = released(tmp_path / "dist", "toolbox", GOOD), tmp_path / "dist/toolbox" / BAD
    elsewhere = released(tmp_path, "toolbox", BAD)
    if kind == "linked folder":
        bad.symlink_to(elsewhere)
    elif kind == "file":
        bad.write_text("")
    else:
        bad.mkdir()
    if kind == "pipe":
        os.mkfifo(bad / "manifest.json")
    elif kind == "folder":
        (bad / "manifest.json").mkdir()
    elif kind in ("link", "device"):
        (bad / "manifest.json").symlink_to(elsewhere / "manifest.json" if kind == "link" else "/dev/zero")
    elif kind == "socket":
        os.mknod(bad / "manifest.json", 0o600 | stat.S_IFSOCK)
    check_left_out(good, bad, why)


def check_left_out(good: Path, bad: Path, why: str) -> None:
    dist = good.parent.parent
    found, misfits = look(dist)
    assert [release.path for release in found] == [good]
    assert [(misfit.path, why in misfit.why) for misfit in misfits] == [(bad, True)], misfits
    assert [release.path for release in latest_releases(dist)] == [good]
    (bad.parent / "latest").symlink_to(bad.name)
    assert choose(dist, "toolbox", None).path == good
    with pytest.raises(VerifyError, match=f"{bad.name} cannot be used: ") as refused:
        choose(dist, "toolbox", bad.name)
    assert "invoke list" in refused.value.hint
