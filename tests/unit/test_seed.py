from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.tools import seed_texts
from vmimage.access.seed import existing_seed, make_seed
from vmimage.util.errors import InputError

KEY = "ssh-ed25519 AAAA me"


def make(to: Path, user_data: Path | None = None, *, force: bool = False) -> dict[str, str]:
    make_seed(to, public_keys=[KEY], hostname="box", user_data=user_data, force=force)
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


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#!/bin/sh\n", ":1: the first line is not #cloud-config"),
        ("", ":1: the first line is not #cloud-config"),
        ("#cloud-config\na: [\n", "is not YAML"),
        ("#cloud-config\n- a\n", "is not a mapping"),
    ],
)
def test_wrong_user_data_writes_nothing(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "user-data"
    path.write_text(text)
    with pytest.raises(InputError, match=why):
        make(tmp_path / "a.iso", path)
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_replaced_only_when_told(tmp_path: Path) -> None:
    make(tmp_path / "a.iso")
    with pytest.raises(InputError, match="exists"):
        make(tmp_path / "a.iso")
    make(tmp_path / "a.iso", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.iso"]


def test_seed_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match=r"--seed none\.iso: no file"):
        existing_seed("none.iso")
