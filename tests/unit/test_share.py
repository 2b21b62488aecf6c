from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from vmimage.access.notify import Notifier
from vmimage.access.share import find_private_key, make_share
from vmimage.access.sshfs import Share
from vmimage.util.errors import InputError


def share(source: Path, target: str | None = None, **options: bool) -> Share:
    return make_share(str(source), target, **{"read_only": False, "follow_links": False, "notify": False, **options})


def test_directory_keeps_its_name_in_the_guest(tmp_path: Path) -> None:
    (tmp_path / "my project").mkdir()
    made = share(tmp_path / "my project")
    assert made.target == "/home/dev/my project"
    assert share(tmp_path, "/srv/../data/").target == "/data"
    words = shlex.split(made.sshfs())
    assert words[:3] == ["exec", "sshfs", "-f"]
    assert words[-2:] == [":/", "/home/dev/my project"]
    options = words[4].split(",")
    assert {"passive", "allow_other", f"fsname={made.name}"} <= set(options)
    assert "ro" not in options
    assert "ro" in shlex.split(share(tmp_path, read_only=True).sshfs())[4].split(",")


def test_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for source, target, options, why in (
        ("none", None, {}, "there is no directory"),
        ("file", None, {}, "there is no directory"),
        (".", "relative", {}, "relative: no directory of the guest"),
        (".", "/", {}, "/: no directory of the guest"),
        (".", "/a\nb", {}, "no directory of the guest"),
        (".", None, {"read_only": True, "notify": True}, "do not go together"),
    ):
        with pytest.raises(InputError, match=why) as refused:
            share(tmp_path / source, target, **options)
        assert refused.value.hint


def test_key_is_a_private_one(tmp_path: Path) -> None:
    assert find_private_key(None) is None
    (tmp_path / "id").write_text("")
    (tmp_path / "id.pub").write_text("")
    assert find_private_key(str(tmp_path / "id")) == tmp_path / "id"
    for wrong in ("id.pub", "none"):
        with pytest.raises(InputError, match="no private key"):
            find_private_key(str(tmp_path / wrong))


def test_changes_by_the_guest_are_not_told_to_it(tmp_path: Path) -> None:
    notifier = Notifier(tmp_path)
    notifier.by_guest(b"/a")
    assert notifier._echo(b"a")
    assert not notifier._echo(os.fsencode("b"))
