from __future__ import annotations

import os
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pycdlib
import pytest
import yaml

from tests.tools import seed_texts
from vmimage.access.seed import existing_seed, make_seed
from vmimage.util.errors import HostError, InputError

KEY = "ssh-ed25519 AAAA me"


def make(to: Path, user_data: Path | None = None, *, force: bool = False, hostname: str = "box") -> dict[str, str]:
    make_seed(to, public_keys=[KEY], hostname=hostname, user_data=user_data, force=force)
    return seed_texts(to)


def test_seed_has_the_keys_and_a_new_identity_each_time(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a.iso"), make(tmp_path / "b.iso")
    assert yaml.safe_load(first["user-data"]) == {"ssh_authorized_keys": [KEY]}
    assert yaml.safe_load(first["meta-data"])["local-hostname"] == "box"
    assert first["meta-data"] != second["meta-data"]


def test_user_data_keeps_its_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "user-data"
    path.write_text("#cloud-config\nruncmd: [date]\nssh_authorized_keys: [ssh-rsa B other]\n")
    found = yaml.safe_load(make(tmp_path / "a.iso", path)["user-data"])
    assert found == {"runcmd": ["date"], "ssh_authorized_keys": ["ssh-rsa B other", KEY]}


ALICE = {"name": "alice", "groups": ["sudo"]}


@pytest.mark.parametrize(
    ("text", "users"),
    [
        ("users: [{name: alice, groups: [sudo]}]", ["default", ALICE]),
        ("users: []", ["default"]),
        ("users:", ["default"]),
        ("users: [default, {name: alice, groups: [sudo]}]", ["default", ALICE]),
        ("users: ['alice,default']", ["alice,default"]),
        ("users: alice", "default,alice"),
        ("users: 'alice, default'", "alice, default"),
        ("users: {alice: {groups: [sudo]}, bob: false}", ["default", {"groups": ["sudo"], "name": "alice"}]),
        ("users: {default: true, bob: true}", ["default", "bob"]),
        ("users: [{shell: /bin/sh}]", [{"shell": "/bin/sh", "ssh_authorized_keys": [KEY]}]),
        (
            "users: [{name: dev, ssh_authorized_keys: ssh-rsa B other}]",
            ["default", {"name": "dev", "ssh_authorized_keys": ["ssh-rsa B other", KEY]}],
        ),
        ("x: &a {name: alice}\nusers: [{<<: *a, groups: [sudo]}]", ["default", ALICE]),
        ("user: dev", None),
        ("user: {name: dev, shell: /bin/sh}", None),
        ("disable_root: false\nssh_pwauth: true", None),
    ],
)
def test_key_reaches_dev_whoever_else_there_is(text: str, users: object, tmp_path: Path) -> None:
    path = tmp_path / "user-data"
    path.write_text(f"#cloud-config\n{text}\n")
    found = yaml.safe_load(make(tmp_path / "a.iso", path)["user-data"])
    assert found["ssh_authorized_keys"] == [KEY]
    assert found.get("users") == users


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf#cloud-config\r\nruncmd: [date]\r\n",
        b"#cloud-config  \nruncmd: [date]",
        b"#Cloud-Config\nruncmd: &a [date]\n",
    ],
    ids=["mark", "spaces", "letters"],
)
def test_ways_of_saving_a_file_do_not_matter(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "user-data"
    path.write_bytes(data)
    text = make(tmp_path / "a.iso", path)["user-data"]
    assert text.startswith("#cloud-config\n")
    assert yaml.safe_load(text)["runcmd"] == ["date"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"#!/bin/sh\n", ":1: the first line is not #cloud-config: it is a script"),
        (b"", ":1: the first line is not #cloud-config$"),
        (b"hostname: a\n#cloud-config\n", ":1: the first line is not #cloud-config$"),
        (b"\x1f\x8b\x08\x00", "it is compressed"),
        (b"## template: jinja\n#cloud-config\n{}", "it is a template"),
        (b"\xef\xbb\xbf## Template: jinja\n#cloud-config\n{}", "it is a template"),
        (b"#include\nhttps://x.invalid\n", "it is a list of addresses"),
        (b"#include-once\nhttps://x.invalid\n", "it is a list of addresses"),
        (b"Content-Type: multipart/mixed; boundary=x\n", "it is MIME"),
        (b"MIME-Version: 1.0\n", "it is MIME"),
        (b"#cloud-config-archive\n- a\n", "it is an archive"),
        (b"#cloud-config-jsonp\n[]\n", "it is a JSON patch"),
        (b"#cloud-boothook\n", "it is a boot hook"),
        (b"#cloud-config\na: [\n", "is not YAML"),
        (b"#cloud-config\na:\n\tb: c\n", "is not YAML.*line 3"),
        (b"#cloud-config\na: !!timestamp x\n", "is not YAML"),
        (b"#cloud-config\na: !!bool x\n", "is not YAML"),
        (b"#cloud-config\na: !!int ''\n", "is not YAML"),
        (b"#cloud-config\na: !!python/name:os.system x\n", "is not YAML"),
        (b"#cloud-config\na: &a [*a]\n", r"\*a is a part of itself"),
        (b"#cloud-config\n- a\n", "is not a mapping"),
        (b"#cloud-config\n" + b"#" * (1 << 20), "is larger than 1 MiB"),
        ("#cloud-config\n".encode("utf-16"), "cannot read"),
        (b"#cloud-config\nuser: alice\n", "user: alice takes the place of dev"),
        (b"#cloud-config\nuser: {name: alice}\n", "user: alice takes the place of dev"),
        (b"#cloud-config\nsystem_info: {default_user: {name: alice}}\n", "alice takes the place of dev"),
        (b"#cloud-config\nuser: {ssh_redirect_user: true}\n", "user: ssh_redirect_user keeps dev from logging in"),
        (b"#cloud-config\nusers: [{name: dev, expiredate: '2000-01-01'}]\n", "dev: expiredate keeps dev from"),
        (b"#cloud-config\nusers: 5\n", "users is not a list"),
        (b"#cloud-config\nusers: [5]\n", "5 is no user"),
        (b"#cloud-config\nusers: [{name: [a]}]\n", "is no user"),
        (b"#cloud-config\nssh_authorized_keys: {a: b}\n", "ssh_authorized_keys is not a list of keys"),
        (b"#cloud-config\nssh_authorized_keys: [[a]]\n", "ssh_authorized_keys is not a list of keys"),
        (b"#cloud-config\ncloud_init_modules: [bootcmd, ssh]\n", "leaves out users_groups or ssh"),
        (b"#cloud-config\nhostname: Jane's\n", "hostname: Jane's: no name of a machine"),
    ],
)
def test_wrong_user_data_writes_nothing(data: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "user-data"
    path.write_bytes(data)
    with pytest.raises(InputError, match=re.compile(why, re.DOTALL)) as refused:
        make(tmp_path / "a.iso", path)
    assert refused.value.hint
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["dev-env", "Box", "a", "7", "x" * 63, "web.example.com"])
def test_names_of_machines(name: str, tmp_path: Path) -> None:
    assert yaml.safe_load(make(tmp_path / "a.iso", hostname=name)["meta-data"])["local-hostname"] == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Jane's laptop_ü",
        "-a",
        "a-",
        "a_b",
        "a b",
        "a..b",
        "a.",
        ".a",
        "x" * 64,
        "a." * 127 + "a",
        "127.0.0.1",
        "a\n",
    ],
)
def test_what_is_no_name_of_a_machine(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no name of a machine"):
        make(tmp_path / "a.iso", hostname=name)
    assert not list(tmp_path.iterdir())


def test_file_is_replaced_only_when_told(tmp_path: Path) -> None:
    make(tmp_path / "a.iso")
    with pytest.raises(InputError, match="exists"):
        make(tmp_path / "a.iso")
    make(tmp_path / "a.iso", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.iso"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    link, folder = tmp_path / "link", tmp_path / "folder"
    link.symlink_to(tmp_path / "none")
    folder.mkdir()
    with pytest.raises(InputError, match="link exists"):
        make(link)
    with pytest.raises(InputError, match="folder is no file"):
        make(folder, force=True)
    with pytest.raises(HostError, match="cannot be written"):
        make(tmp_path / "none" / "a.iso")
    assert sorted(tmp_path.iterdir()) == [folder, link]


def test_file_of_several_keys(tmp_path: Path) -> None:
    make_seed(tmp_path / "a.iso", public_keys=["ssh-rsa A\n\nssh-rsa B\n"], hostname="box", user_data=None, force=False)
    found = yaml.safe_load(seed_texts(tmp_path / "a.iso")["user-data"])
    assert found == {"ssh_authorized_keys": ["ssh-rsa A", "ssh-rsa B"]}


def test_seed_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match=r"--seed none\.iso: no file"):
        existing_seed("none.iso")


def iso(to: Path, label: str, *names: str, joliet: bool = True, rock_ridge: bool = True) -> Path:
    made = pycdlib.PyCdlib()
    made.new(
        interchange_level=3, joliet=3 if joliet else None, rock_ridge="1.09" if rock_ridge else None, vol_ident=label
    )
    for number, name in enumerate(names):
        more: dict[str, Any] = {"rr_name": name} if rock_ridge else {}
        more |= {"joliet_path": f"/{name}"} if joliet else {}
        made.add_fp(BytesIO(b"x"), 1, f"/F{number}.;1", **more)
    made.write(str(to))
    made.close()
    return to


@pytest.mark.parametrize(
    ("label", "joliet", "rock_ridge"),
    [("cidata", True, True), ("CIDATA", True, False), ("cidata", False, True)],
)
def test_seed_of_another_program_is_taken(label: str, joliet: bool, rock_ridge: bool, tmp_path: Path) -> None:
    path = iso(tmp_path / "a.iso", label, "meta-data", "user-data", "x", joliet=joliet, rock_ridge=rock_ridge)
    assert existing_seed(str(path)) == path
    (tmp_path / "link").symlink_to(path)
    assert existing_seed(f"{tmp_path}/link")


def test_seed_of_ours_and_one_on_fat_are_taken(tmp_path: Path) -> None:
    make(tmp_path / "a.iso")
    assert existing_seed(f"{tmp_path}/a.iso")
    for mark, at in ((0x26, 0x2B), (0x42, 0x47)):
        head = bytearray(4096)
        head[mark], head[at : at + 11], head[510:512] = 0x29, b"CIDATA     ", b"\x55\xaa"
        (tmp_path / "fat").write_bytes(head)
        assert existing_seed(f"{tmp_path}/fat")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("another label", "its label is 'Debian 13', not 'cidata'"),
        ("no user-data", "it has no user-data"),
        ("neither", "it has no meta-data and no user-data"),
        ("a text", "it is no ISO, and no FAT disk"),
        ("nothing", "it is no ISO, and no FAT disk"),
        ("cut short", "it has no meta-data and no user-data"),
        ("lists that are elsewhere", "it has no meta-data and no user-data"),
        ("a label that is no text", r"its label is '\\x1b\[2J"),
    ],
)
def test_what_is_no_seed_is_refused_before_a_machine_starts(what: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.iso"
    names = {"no user-data": ("meta-data",), "neither": ()}.get(what, ("meta-data", "user-data"))
    data = bytearray(iso(path, "Debian 13" if what == "another label" else "cidata", *names).read_bytes())
    if what == "a label that is no text":
        data[32768 + 40 : 32768 + 44] = b"\x1b[2J"
    elif what == "lists that are elsewhere":
        for at in (32768, 32768 + 2048):
            data[at + 158 : at + 162] = data[at + 166 : at + 170] = b"\xff" * 4
    elif what == "cut short":
        del data[18 * 2048 :]
    elif what in ("a text", "nothing"):
        data = bytearray(b"mine\n" if what == "a text" else b"")
    path.write_bytes(data)
    with pytest.raises(InputError, match=why) as refused:
        existing_seed(str(path))
    assert refused.value.hint


def test_what_cannot_be_a_seed_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="no file"):
            existing_seed(f"{tmp_path}/{name}")
