from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vmimage.access.kubeconfig import KEPT_BACKUPS, chosen_file, locked, merged, read, removed, renamed, write
from vmimage.util.errors import HostError, InputError

K3S = """
apiVersion: v1
kind: Config
clusters: [{name: default, cluster: {certificate-authority-data: Q0E=, server: 'https://127.0.0.1:6443'}}]
contexts: [{name: default, context: {cluster: default, user: default}}]
current-context: default
users: [{name: default, user: {client-certificate-data: Yw==, client-key-data: aw==}}]
"""
OURS = renamed(K3S, "dev-env", "https://127.0.0.1:6443")


def entry(name: str, inner: str) -> dict[str, Any]:
    return {"name": name, inner: {"server": f"https://{name}.invalid"}, "extensions": [{"x": 1}]}


names = st.lists(st.sampled_from(["a", "b", "c", "d"]), unique=True)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    config: dict[str, Any] = {"kind": "Config", "preferences": {"colors": True}, "unknown": [1]}
    for section, inner in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
        config[section] = [entry(name, inner) for name in draw(names)]
    config["current-context"] = draw(st.sampled_from(["", "a"]))
    return config


def test_names_and_server_are_ours() -> None:
    assert OURS["clusters"][0]["cluster"] == {"certificate-authority-data": "Q0E=", "server": "https://127.0.0.1:6443"}
    assert OURS["contexts"] == [{"name": "dev-env", "context": {"cluster": "dev-env", "user": "dev-env"}}]


@pytest.mark.parametrize("text", ["", "[]", "a: {", "clusters: []", "clusters: [{}]\nusers: [{}]"])
def test_what_is_no_kubeconfig_of_a_machine(text: str) -> None:
    with pytest.raises(HostError, match="is not a kubeconfig"):
        renamed(text, "x", "y")


@given(present=configs())
def test_others_stay_and_twice_is_once_and_removing_restores(present: dict[str, Any]) -> None:
    both = merged(present, OURS)
    for section in ("clusters", "users", "contexts"):
        assert both[section][: len(present[section])] == present[section]
    assert {key: both[key] for key in ("kind", "preferences", "unknown")} == {
        key: present[key] for key in ("kind", "preferences", "unknown")
    }
    assert merged(both, OURS) == both
    assert both["current-context"] == (present["current-context"] or "dev-env")
    assert removed(both, "dev-env") == present
    assert merged(present, OURS, use=True)["current-context"] == "dev-env"


def test_entry_of_the_same_name_with_another_server_needs_force() -> None:
    present = merged({}, renamed(K3S, "dev-env", "https://elsewhere.invalid"))
    with pytest.raises(InputError, match=r"a cluster dev-env already, at https://elsewhere\.invalid"):
        merged(present, OURS)
    assert merged(present, OURS, force=True) == merged({}, OURS)


@pytest.mark.parametrize(
    ("text", "why"), [("a: [", "is not YAML"), ("clusters: [1]", "clusters is not a list"), ("[]", "is not a list")]
)
def test_broken_file_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(InputError, match=why):
        read(tmp_path / "config")


def test_absent_file_is_made_for_its_user_only(tmp_path: Path) -> None:
    path = tmp_path / "config"
    assert read(path) == {}
    assert write(path, merged({}, OURS)) is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(path) == merged({}, OURS)


def test_backup_is_what_was_there_and_old_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "config"
    for day in range(KEPT_BACKUPS + 2):
        (tmp_path / f"config.vmimage-2020010{day}-000000").write_text("old")
    path.write_text("# mine\nkind: Config\n")
    path.chmod(0o640)
    backup = write(path, {"kind": "Config"})
    assert backup
    assert backup.read_text() == "# mine\nkind: Config\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert len(list(tmp_path.glob("config.vmimage-*"))) == KEPT_BACKUPS


def test_lock_of_kubectl_is_respected(tmp_path: Path) -> None:
    with locked(tmp_path / "config"), pytest.raises(HostError, match="is held by another program"):  # noqa: SIM117
        with locked(tmp_path / "config"):
            pass
    assert not list(tmp_path.iterdir())


def test_file_is_the_one_kubectl_writes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert chosen_file(None, {}, tmp_path) == tmp_path / ".kube" / "config"
    assert chosen_file(None, {"KUBECONFIG": f"{tmp_path}/a:{tmp_path}/b"}, tmp_path) == tmp_path / "a"
    assert chosen_file(str(tmp_path / "link"), {"KUBECONFIG": "x"}, tmp_path) == tmp_path / "real"


def test_order_of_keys_stays(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("users: []\nkind: Config\nclusters: []\ncontexts: []\n")
    write(path, merged(read(path), OURS))
    assert list(yaml.safe_load(path.read_text())) == ["users", "kind", "clusters", "contexts", "current-context"]
