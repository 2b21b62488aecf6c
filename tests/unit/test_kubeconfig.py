from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ssh_server import ssh_server
from tests.tools import host_key
from vmimage.access import kubeconfig
from vmimage.access.kubeconfig import fetch, renamed, require_name, server_url
from vmimage.access.kubeconfig_entries import merged
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


def test_names_and_server_are_ours() -> None:
    server = "https://127.0.0.1:6443"
    mark = {"name": "vmimage", "extension": {"server": server}}
    wanted = {"certificate-authority-data": "Q0E=", "server": server, "extensions": [mark]}
    assert OURS["clusters"][0]["cluster"] == wanted
    assert OURS["contexts"] == [{"name": "dev-env", "context": {"cluster": "dev-env", "user": "dev-env"}}]


def machines(cluster: str = "{certificate-authority-data: Q0E=}", user: str = "{token: x}", more: str = "") -> str:
    """Return a kubeconfig, as a machine may tell it."""
    return f"{more}\nclusters: [{{name: d, cluster: {cluster}}}]\nusers: [{{name: d, user: {user}}}]\n"


def test_token_does_as_well() -> None:
    server = "https://localhost:6443"
    mark = {"name": "vmimage", "extension": {"server": server}}
    assert renamed(machines(), "x", server) == {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "x", "cluster": {"certificate-authority-data": "Q0E=", "server": server, "extensions": [mark]}}
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
    started = time.process_time()
    for text in (
        machines(more=bomb, cluster="{extensions: *a12}"),
        machines(more=bomb),
        deep,
        machines(more=f"a: {deep}"),
    ):
        with pytest.raises(HostError, match="it has aliases, or is too deep"):
            renamed(text, "x", "y")
    assert time.process_time() - started < 5


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
    monkeypatch.setattr(kubeconfig, "KUBECONFIG_SECONDS", 0.3)
    with pytest.raises(HostError, match="does not tell its kubeconfig: no answer"):
        told(K3S.encode(), status=None)


def test_name_of_a_context_is_one_that_can_be_typed() -> None:
    require_name("my machine")
    for wrong in ("", " a", "a\nb", "\x1b[31m", "x" * 201):
        with pytest.raises(InputError, match="no name of a context"):
            require_name(wrong)


@pytest.mark.parametrize(
    "host",
    ["", "a b", "a\nb", "-x", "a/b", "a@b", "a:b", "a?b#c", "a\x1b[2Jb", "http://x", "[::1]", "x" * 5000, "..", "1.2.3",
     "0x7f.1", "\u0663", "a\u202eb", "fe80::1%a/b", "fe80::1%a\nb", "a..b", "b-.a"],
)  # fmt: skip
def test_host_that_is_none_is_refused_before_anybody_is_asked(host: str) -> None:
    for made in (lambda: server_url(host, 6443), lambda: Address(host=host)):
        with pytest.raises(InputError, match=r"(?s)--host .*neither the name of a host nor an address") as refused:
            made()
        assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    "host", ["localhost", "10.0.0.7", "::1", "fe80::1%eth0", "my_box.lan.", "xn--bcher-kva.example"]
)
def test_host_that_is_one_is_taken(host: str) -> None:
    assert Address(host=host).host == host
    assert server_url(host, 6443).startswith("https://")


def test_port_of_kubernetes_is_one() -> None:
    with pytest.raises(InputError, match="--kubernetes-port"):
        server_url("localhost", 0)
