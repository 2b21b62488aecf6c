"""Component kubectl."""

from __future__ import annotations

import json

from testinfra.host import Host

from .conftest import Context


def test_kubectl_is_the_pinned_version(host: Host, context: Context) -> None:
    version = json.loads(host.check_output("kubectl version --client -o json"))
    assert version["clientVersion"]["gitVersion"] == context.version("kubectl")


def test_kubectl_works_without_a_cluster(host: Host) -> None:
    made = host.check_output("kubectl create configmap c --from-literal=a=b --dry-run=client -o json")
    assert json.loads(made)["data"] == {"a": "b"}


def test_kubectl_completion(host: Host) -> None:
    # What bash does at the first Tab.
    shown = host.check_output("bash -ic '_comp_load kubectl; complete -p kubectl' 2>/dev/null")
    assert "__start_kubectl" in shown
