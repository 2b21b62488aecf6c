from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from vmimage.access.notify import Notifier
from vmimage.access.share import find_private_key, make_share
from vmimage.access.sshfs import PREPARE, UNMOUNT, WAIT_UNTIL_MOUNTED, Share
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


def test_scripts_run_and_take_any_name(tmp_path: Path) -> None:
    made = share(tmp_path, f"{tmp_path}/a b'$(c)")
    status, said, errors = sh(made.script(PREPARE, again="", has_content="21", mounted="22", not_ours="23"))
    assert (status, said.split(), errors) == (0, [str(os.getuid()), str(os.getgid())], "")
    assert [path.name for path in tmp_path.iterdir()] == ["a b'$(c)"]
    (Path(made.target) / "content").write_text("")
    assert sh(made.script(PREPARE, again="", has_content="21", mounted="22", not_ours="23"))[0] == 21
    assert sh(made.script(WAIT_UNTIL_MOUNTED, seconds="1")) == (1, "", "")
    # Nothing to unmount: fusermount3 says so, or is not there.
    assert sh(made.script(UNMOUNT))[0] != 0


def sh(command: str) -> tuple[int, str, str]:
    """Run a command as the guest's ssh server does."""
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


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
