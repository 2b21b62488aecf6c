"""Component helm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from testinfra.host import Host

from .conftest import Context

FILES = {
    "Chart.yaml": "apiVersion: v2\nname: small\nversion: 0.1.0\n",
    "values.yaml": "greeting: hello\n",
    "templates/config.yaml": (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-config\n"
        "data:\n  greeting: {{ .Values.greeting | upper | quote }}\n"
    ),
}


@pytest.fixture
def chart(host: Host) -> Iterator[str]:
    folder = host.check_output("mktemp -d")
    for name, text in FILES.items():
        host.check_output("mkdir -p $(dirname %s) && printf %%s %s > %s", f"{folder}/{name}", text, f"{folder}/{name}")
    yield folder
    host.check_output("rm -r %s", folder)


def test_helm_is_the_pinned_version(host: Host, context: Context) -> None:
    assert host.check_output("helm version --template '{{.Version}}'") == context.version("helm")


def test_helm_renders_a_chart(host: Host, chart: str) -> None:
    rendered = host.check_output("helm template shop %s --set greeting=welcome", chart)
    assert "name: shop-config" in rendered
    assert 'greeting: "WELCOME"' in rendered


def test_helm_refuses_a_broken_chart(host: Host, chart: str) -> None:
    host.check_output("printf '{{ .Values.greeting' > %s/templates/config.yaml", chart)
    assert host.run("helm template shop %s", chart).rc != 0
