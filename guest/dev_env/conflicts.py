"""Which objects a chart would make that another release has: helm refuses such a chart, and half of `up` would be done.

Only what is rendered from templates is known here: an object that a chart makes in other ways is found by helm itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from dev_env import Failure
from dev_env.bounds import HELM_SECONDS
from dev_env.tools import run

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CLUSTER_WIDE = frozenset({
    "APIService", "ClusterRole", "ClusterRoleBinding", "CSIDriver", "CustomResourceDefinition", "IngressClass",
    "MutatingWebhookConfiguration", "Namespace", "PersistentVolume", "PriorityClass", "RuntimeClass", "StorageClass",
    "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration",
})  # fmt: skip
Identity = tuple[str, str, str]
"""(kind, namespace, name) of an object; the namespace is empty for what has none."""


def rendered(name: str, source: str, namespace: str, *further: str) -> frozenset[Identity]:
    """Return the objects that a chart would make; none if it can be rendered only by installing it."""
    argv = ["helm", "template", name, source, "--namespace", namespace, "--no-hooks", *further]
    try:
        return frozenset(objects_in(run(argv, seconds=HELM_SECONDS), namespace))
    except (Failure, yaml.YAMLError, RecursionError):
        return frozenset()  # helm says what is wrong when it is to be installed


def made_by(release: Mapping[str, Any]) -> frozenset[Identity]:
    """Return the objects of one of helm's releases."""
    argv = ["helm", "get", "manifest", release["name"], "--namespace", release["namespace"]]
    try:
        return frozenset(objects_in(run(argv), release["namespace"]))
    except (Failure, yaml.YAMLError, RecursionError):
        return frozenset()  # it is going, or was never installed


def objects_in(text: str, namespace: str) -> Iterator[Identity]:
    """Yield the identities of the objects in a manifest of several documents."""
    for document in yaml.load_all(text, Loader=LOADER):
        several = isinstance(document, dict) and document.get("kind") == "List" and document.get("items")
        for each in several if isinstance(several, list) else [document]:
            if found := _identity(each, namespace):
                yield found


def _identity(document: object, namespace: str) -> Identity | None:
    """Return the identity of an object; none of what is no object.

    Its parts are texts: what else stands there may be in itself, and have no end.
    """
    meta = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(meta, dict):
        return None
    kind, name, where = document.get("kind"), meta.get("name"), meta.get("namespace") or namespace
    if not all(isinstance(each, str) and each for each in (kind, name, where)):
        return None
    return str(kind), "" if kind in CLUSTER_WIDE else str(where), str(name)


def told(objects: Iterable[Identity]) -> str:
    """Return one of some objects as people name it."""
    kind, namespace, name = min(objects)
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
