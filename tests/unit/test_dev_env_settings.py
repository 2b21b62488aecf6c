"""Settings of k3s, the shell's variables, and the watch of services: what is decided without a cluster."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dev_env import Failure, settings, tools, watching
from dev_env.tools import environment

BOMB = "a: &a [x, x]\n" + "".join(
    f"b{step}: &{chr(98 + step)} [{', '.join([f'*{chr(97 + step)}'] * 10)}]\n" for step in range(25)
)
KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"


@pytest.mark.parametrize(
    ("files", "disabled"),
    [
        ({"config.yaml": "disable: [traefik, metrics-server]\n"}, {"traefik", "metrics-server"}),
        ({"config.yaml": "disable: traefik, coredns\n"}, {"traefik", "coredns"}),
        ({"config.yaml": "disable:\n  - traefik,servicelb\n  - coredns\n"}, {"traefik", "servicelb", "coredns"}),
        ({"config.yaml": "disable: traefik\ndisable+: coredns\n"}, {"traefik", "coredns"}),
        ({"config.yaml": "disable: traefik\n", "config.yaml.d/9.yaml": "disable: [coredns]\n"}, {"coredns"}),
        (
            {"config.yaml": "disable: traefik\n", "config.yaml.d/9.yaml": "disable+: [coredns]\n"},
            {"traefik", "coredns"},
        ),
        ({"config.yaml.d/1.yaml": "disable: traefik\n", "config.yaml.d/2.yml": "disable: []\n"}, set()),
        ({"config.yaml.d/1.yaml": "disable: traefik\n", "config.yaml.d/2.txt": "disable: coredns\n"}, {"traefik"}),
        # No other key, no comment, no value.
        ({"config.yaml": "# disable: coredns\ndisable-helm-controller: true\ndisable-kube-proxy: coredns\n"}, set()),
        ({"config.yaml": "node-label: ['disable=traefik']\nnode-name: coredns\n"}, set()),
        ({"config.yaml": "kubelet-arg:\n  disable: [traefik]\n"}, set()),
        ({"config.yaml": "disable: true\n"}, set()),
        ({"config.yaml": "disable:\n"}, set()),
        ({"config.yaml": "disable: {traefik: true}\n"}, set()),
        ({"config.yaml": "- disable\n"}, set()),
        # Nested in itself many times over: as a text it would have no end.
        ({"config.yaml": BOMB + "disable: [*z, traefik, 1]\ncluster-domain: *z\n"}, {"traefik"}),
        ({"config.yaml": ""}, set()),
        ({}, set()),
    ],
)
def test_disable_and_nothing_else_says_what_is_left_out(
    files: dict[str, str], disabled: set[str], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml.d").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert settings.read(tmp_path / "config.yaml").disabled == disabled


def test_settings_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("a: [\n")
    with pytest.raises(Failure, match=r"config\.yaml is not YAML"):
        settings.read(config)
    config.write_text("[" * 500)
    with pytest.raises(Failure, match="is not YAML"):
        settings.read(config)
    config.write_text("cluster-domain: my.example\n")
    (tmp_path / "config.yaml.d").mkdir()
    (tmp_path / "config.yaml.d" / "secret.yaml").write_text("disable: traefik\n")
    real = Path.open

    def closed(path: Path, *arguments: str) -> object:
        if path.name == "secret.yaml":
            raise PermissionError
        return real(path, *arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", closed)
    found = settings.read(config)
    assert found.domain == "my.example"
    assert found.unread == (str(tmp_path / "config.yaml.d" / "secret.yaml"),)


@pytest.mark.parametrize("program", ["kubectl", "helm"])
@pytest.mark.parametrize(
    "name",
    [
        "KUBECONFIG", "KUBECONTEXT", "KUBERNETES_MASTER", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT",
        "KUBECTL_COMMAND_HEADERS", "KUBECTL_EXTERNAL_DIFF", "KUBE_EDITOR", "KUBECACHEDIR", "POD_NAMESPACE",
        "HELM_KUBECONTEXT", "HELM_NAMESPACE", "HELM_KUBEAPISERVER", "HELM_KUBETOKEN", "HELM_KUBECAFILE",
        "HELM_KUBEASUSER", "HELM_KUBEASGROUPS", "HELM_KUBEINSECURE_SKIP_TLS_VERIFY", "HELM_KUBETLS_SERVER_NAME",
        "HELM_DRIVER", "HELM_DRIVER_SQL_CONNECTION_STRING", "HELM_DEBUG", "HELM_PLUGINS", "HELM_BIN",
    ],
)  # fmt: skip
def test_no_variable_of_the_shell_leads_to_another_cluster(name: str, program: str) -> None:
    found = environment({name: "elsewhere", "HOME": "/home/dev", "PATH": "/bin"}, program=program)
    assert "elsewhere" not in found.values()
    assert (found["KUBECONFIG"], found["HOME"], found["PATH"]) == (KUBECONFIG, "/home/dev", "/bin")
    assert found["KUBERC"] == "off"


def test_places_of_helm_stay_and_proxies_lead_to_repositories_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "k3s.yaml").write_text("clusters:\n  - cluster: {server: 'https://192.0.2.7:6443'}\n")
    monkeypatch.setattr(tools, "KUBECONFIG", tmp_path / "k3s.yaml")
    proxies = dict.fromkeys(("HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), "http://proxy.example:3128")
    shell = {**proxies, "no_proxy": "intern.example", "HELM_REGISTRY_CONFIG": "/r.json"}
    helm = environment(shell)
    assert helm["HELM_REGISTRY_CONFIG"] == "/r.json"
    assert helm["https_proxy"] == "http://proxy.example:3128"
    assert helm["NO_PROXY"] == helm["no_proxy"] == "intern.example,localhost,127.0.0.1,::1,192.0.2.7"
    assert not [name for name in environment(shell, program="kubectl") if name.lower().endswith("_proxy")
                and name.lower() != "no_proxy"]  # fmt: skip
    for text in ("", "[", "clusters: 1", "clusters: [{cluster: {server: 'https://[x'}}]", "- " * 500):
        (tmp_path / "k3s.yaml").write_text(text)
        assert environment({})["NO_PROXY"] == "localhost,127.0.0.1,::1", text


class _EndError(BaseException):
    """Ends a loop that has no end."""


def test_watch_goes_on_after_what_nobody_foresaw_and_says_it_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def changes(self, _kind: str) -> Iterator[None]:
            yield
            raise KeyError("metadata\x1b[2J")

    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise _EndError

    monkeypatch.setattr(watching, "Api", Broken)
    monkeypatch.setattr("time.sleep", sleep)
    changed = threading.Event()
    with pytest.raises(_EndError):
        watching.Watcher("Service", changed)._run()
    assert changed.is_set()
    said = capsys.readouterr().err
    assert "watching each Service: Traceback" in said
    assert "KeyError" in said
    assert "\x1b" not in said


def test_watch_that_is_refused_waits_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise Failure("the cluster does not answer")

    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 7:
            raise _EndError

    monkeypatch.setattr(watching, "Api", refused)
    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(_EndError):
        watching.Watcher("Service", threading.Event())._run()
    assert pauses == [2, 4, 8, 16, 32, 60, 60]


def test_service_ends_with_an_error_when_a_watch_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching.Watcher, "_run", lambda _: None)
    monkeypatch.setattr(watching, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(watching, "RESYNC_SECONDS", 0.05)
    with pytest.raises(RuntimeError, match="nobody watches each Service any more"):
        watching.watch()


def test_names_are_kept_after_an_error_that_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns: list[int] = []

    def reconcile(_: object) -> list[str]:
        turns.append(1)
        if len(turns) == 1:
            raise TypeError("an object that nobody foresaw")
        if len(turns) == 2:
            return ["Service default/shop-dev-env"]
        raise _EndError

    for name, value in {"SETTLE_SECONDS": 0, "RETRY_SECONDS": 0.01, "RESYNC_SECONDS": 0.01}.items():
        monkeypatch.setattr(watching, name, value)
    monkeypatch.setattr(watching.Watcher, "require_alive", lambda _: None)
    monkeypatch.setattr(watching.Watcher, "start", lambda _: None)
    monkeypatch.setattr(watching, "Api", lambda: None)
    monkeypatch.setattr(watching, "reconcile", reconcile)
    with pytest.raises(_EndError):
        watching.watch()
    out, err = capsys.readouterr()
    assert out == "Service default/shop-dev-env\n"
    assert "TypeError: an object that nobody foresaw" in err
