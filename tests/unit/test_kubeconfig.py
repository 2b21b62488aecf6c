from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ssh_server import ssh_server
from tests.tools import host_key
from vmimage.access import kubeconfig
from vmimage.access.kubeconfig import (
    KEPT_BACKUPS,
    chosen_file,
    fetch,
    locked,
    merged,
    read,
    removed,
    renamed,
    server_url,
    write,
)
from vmimage.access.login import Address, log_in
from vmimage.util.errors import HostError, InputError
from vmimage.vm.ssh import make_key

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


def machines(cluster: str = "{certificate-authority-data: Q0E=}", user: str = "{token: x}", more: str = "") -> str:
    """Return a kubeconfig, as a machine may tell it."""
    return f"{more}\nclusters: [{{name: d, cluster: {cluster}}}]\nusers: [{{name: d, user: {user}}}]\n"


def test_token_does_as_well() -> None:
    assert renamed(machines(), "x", "https://localhost:6443") == {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "x", "cluster": {"certificate-authority-data": "Q0E=", "server": "https://localhost:6443"}}
        ],
        "users": [{"name": "x", "user": {"token": "x"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        "current-context": "x",
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "- a\n- b",
        "a: {",
        "text",
        "clusters: []",
        "clusters: [{}]\nusers: [{}]",
        "clusters: text\nusers: text",
        "\x00",
        machines(cluster="text"),
        machines(cluster="{server: 'https://x'}"),
        machines(user="{client-certificate-data: Yw==}"),
        machines(user="{}"),
    ],
)
def test_what_is_no_kubeconfig_of_a_machine(text: str) -> None:
    with pytest.raises(HostError, match="is not a kubeconfig"):
        renamed(text, "x", "y")


@pytest.mark.parametrize(
    ("section", "entry", "named"),
    [
        ("user", "{exec: {command: sh, args: [-c, id]}}", "'exec'"),
        ("user", "{tokenFile: /home/dev/.secret}", "'tokenFile'"),
        ("user", "{token: x, client-key: /home/dev/.ssh/id_ed25519}", "'client-key'"),
        ("user", "{token: x, as: admin}", "'as'"),
        ("user", "{token: x, auth-provider: {name: gcp}}", "'auth-provider'"),
        ("user", "{token: [x]}", "token"),
        ("user", "{token: 'a b'}", "token"),
        ("user", '{token: "a\\nb"}', "token"),
        ("user", "{token: x, client-key-data: '***'}", "base64"),
        ("user", '{token: x, "\\e[31m": x}', r"'\\x1b"),
        ("user", "{token: x, <<: {exec: {}}}", "'<<'"),
        ("cluster", "{certificate-authority-data: Q0E=, proxy-url: 'http://x'}", "'proxy-url'"),
        ("cluster", "{certificate-authority-data: Q0E=, insecure-skip-tls-verify: true}", "'insecure-skip-tls-verify'"),
        (
            "cluster",
            "{certificate-authority-data: Q0E=, certificate-authority: /etc/passwd}",
            "'certificate-authority'",
        ),
        ("cluster", "{certificate-authority-data: !!binary aGk=, 5: !!set {a, b}}", "'5'"),
        ("cluster", "{certificate-authority-data: {a: b}}", "certificate-authority-data"),
        ("cluster", "{certificate-authority-data: }", "certificate-authority-data"),
        ("cluster", "{certificate-authority-data: Q0E=, [a]: b}", "unhashable"),
    ],
)
def test_what_a_machine_may_not_bring_is_refused_by_name(section: str, entry: str, named: str) -> None:
    with pytest.raises(HostError, match=named):
        renamed(machines(**{section: entry}), "x", "y")


def test_aliases_and_depth_are_refused_at_once() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 13))
    deep = "[" * 30000
    started = time.monotonic()
    for text in (
        machines(more=bomb, cluster="{extensions: *a12}"),
        machines(more=bomb),
        deep,
        machines(more=f"a: {deep}"),
    ):
        with pytest.raises(HostError, match="it has aliases, or is too deep"):
            renamed(text, "x", "y")
    assert time.monotonic() - started < 5


@settings(deadline=None)
@given(text=st.text(alphabet=st.sampled_from("[]{}&*!<:-,'\"?|>% \nab\x00\x85\u2028é"), max_size=60))
def test_no_text_is_a_traceback(text: str) -> None:
    for source in (text, machines(more=text), machines(user=text)):
        with contextlib.suppress(HostError):
            assert set(renamed(source, "x", "y")["users"][0]["user"]) <= {"token", "client-key-data"}


@pytest.mark.parametrize(
    ("host", "server", "name"),
    [
        ("127.0.0.1", "https://127.0.0.1:6443", None),
        ("localhost", "https://localhost:6443", None),
        ("::1", "https://[::1]:6443", "localhost"),
        ("192.168.56.10", "https://192.168.56.10:6443", "localhost"),
        ("fe80::1%eth0", "https://[fe80::1%25eth0]:6443", "localhost"),
        ("desk.example.com", "https://desk.example.com:6443", "localhost"),
    ],
)
def test_certificate_is_compared_with_a_name_that_is_in_it(host: str, server: str, name: str | None) -> None:
    ours = renamed(K3S, "dev-env", server_url(host, 6443))
    cluster = ours["clusters"][0]["cluster"]
    assert (cluster["server"], cluster.get("tls-server-name")) == (server, name)
    both = merged({}, ours)
    assert merged(both, ours) == both
    del both["clusters"][0]["cluster"]["certificate-authority-data"]
    assert merged(both, ours) == merged({}, ours), "no --force for what leads to the same machine"


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., str]:
    """Fetch from a machine that answers with something."""
    key, host = make_key(tmp_path).private, host_key("ed25519")

    def fetched(answer: bytes, status: int | None = 0) -> str:
        with ssh_server(host, answer=answer, status=status) as port:
            address = Address(port=port, key=key, host_key=host.fingerprint)
            with log_in(address, tmp_path / "known_hosts") as client:
                return fetch(client)

    return fetched


def test_what_a_machine_tells_is_bounded(told: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(K3S.encode()) == K3S
    assert len(told(b"x" * (64 << 10))) == 64 << 10
    with pytest.raises(HostError, match="answers with more than 64 KiB"):
        told(b"x" * (8 << 20))
    with pytest.raises(InputError, match="has no Kubernetes"):
        told(b"", status=3)
    with pytest.raises(HostError, match="is not a kubeconfig"):
        renamed(told(b"\xff\xfe"), "x", "y")
    monkeypatch.setattr(kubeconfig, "SECONDS", 0.3)
    with pytest.raises(HostError, match="does not tell its kubeconfig: no answer"):
        told(K3S.encode(), status=None)


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
    ("text", "why"),
    [
        ("a: [", "is not YAML"),
        ("clusters: [1]", "clusters is not a list"),
        ("[]", "is not a list"),
        ("a: !!int x", "is not YAML"),
        ("a: !!float x", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: 1\na: 2", "is not YAML"),
    ],
    ids=["open", "section", "list", "int", "float", "deep", "twice"],
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


BY_HAND = """\
# mine
apiVersion: v1
kind: Config
clusters:
- name: work  # behind the VPN
  cluster:
    server: 'https://192.0.2.1'
    insecure-skip-tls-verify: yes
# the people
users:
- name: work
  user: {token: "0123"}
contexts: []
current-context: work
"""


def test_what_its_user_wrote_stays_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(BY_HAND)
    write(path, merged(read(path), OURS))
    lines = path.read_text().splitlines()
    assert [line for line in BY_HAND.splitlines() if line not in lines] == ["contexts: []"]
    assert read(path)["contexts"] == OURS["contexts"]
    write(path, removed(read(path), "dev-env"))
    assert path.read_text() == BY_HAND
