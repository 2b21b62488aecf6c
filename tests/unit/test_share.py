from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from paramiko import sftp

from tests.sftp_client import served
from vmimage.access.confined import Folder
from vmimage.access.doors import closed_doors, outward_links
from vmimage.access.notify import Notifier
from vmimage.access.share import find_private_key, make_share
from vmimage.access.sshfs import Share
from vmimage.util.errors import InputError


def share(source: Path, target: str | None = None, *follow: str, **options: bool) -> Share:
    chosen = {"read_only": False, "notify": False, **options}
    return make_share(str(source), target, **chosen, follow=follow)


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


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A directory with a link that its user made, one that a machine left there, and others."""
    folder = tmp_path / "shop"
    (folder / "sub").mkdir(parents=True)
    for name in ("lib", "keys"):
        (tmp_path / name).mkdir()
        (folder / name).symlink_to(tmp_path / name)
    (folder / "in").symlink_to("sub")
    (folder / "dead").symlink_to("/nowhere/at/all")
    (folder / "a=b").symlink_to("../lib")
    return folder


def test_link_is_followed_only_to_where_its_user_says(linked: Path) -> None:
    lib = linked.parent / "lib"
    assert share(linked, None, f"lib={lib}").doors == {b"lib": os.fsencode(lib)}
    assert share(linked, None, f"./lib={lib}/", f"a=b={lib}").doors.keys() == {b"lib", b"a=b"}
    assert share(linked).doors == {}
    for wrong, why in (
        ("keys", f"keys leads to {linked.parent}/keys$"),
        (f"keys={lib}", f"keys leads to {linked.parent}/keys, not to {lib}"),
        (f"lib={linked}/lib", f"lib leads to {lib}, not to"),
        (f"keys/..={lib}", "no path|is no link"),
        (f"none={lib}", "none is no link in the directory"),
        (f"sub={linked}/sub", "sub is no link in the directory"),
        (f"in={linked}/sub", "stays in the directory"),
        ("dead=/nowhere/at/all", "leads to nothing"),
        (f"../shop/lib={lib}", "no path in the directory"),
        (f"{linked}/lib={lib}", "no path in the directory"),
        ("", "no path in the directory"),
        ("=", "no path in the directory"),
    ):
        with pytest.raises(InputError, match=why) as refused:
            share(linked, None, wrong)
        assert refused.value.hint
    with pytest.raises(InputError) as refused:
        share(linked, None, "keys")
    assert refused.value.hint.endswith(f"--follow-link keys={linked.parent}/keys")


def test_link_that_a_machine_put_in_its_place_is_refused_at_the_next_start(linked: Path) -> None:
    named = f"lib={linked.parent}/lib"
    assert share(linked, None, named).doors
    (linked / "lib").unlink()
    (linked / "lib").symlink_to("../keys")
    with pytest.raises(InputError, match=r"lib leads to .*keys, not to .*lib"):
        share(linked, None, named)


def test_links_that_lead_out_are_told_each_with_the_option_that_serves_it(linked: Path) -> None:
    wanted = [f"{link}={linked.parent}/{target}" for link, target in (("a=b", "lib"), ("keys", "keys"), ("lib", "lib"))]
    assert closed_doors(linked, {}) == [f"--follow-link {each}" for each in wanted]
    assert closed_doors(linked, share(linked, None, *wanted).doors) == []
    assert closed_doors(linked / "sub", {}) == []


def test_folder_of_which_not_all_was_examined_is_not_moved_beside_doors(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that leads out would be the last of many names."""
    (root / "out").symlink_to("../secret")
    for number in range(10):
        (root / "sub" / str(number)).touch()
    with served(Folder(root, doors=outward_links(root))) as (client, _):
        assert client.status(sftp.CMD_RENAME, b"sub", b"sub2") == sftp.SFTP_OK
        monkeypatch.setattr("vmimage.access.doors.EXAMINED", 9)
        assert client.status(sftp.CMD_RENAME, b"sub2", b"sub3") == sftp.SFTP_FAILURE
    assert (root / "sub2").is_dir()
