"""Where the charts that run came from: helm does not note it, so a ConfigMap of ours does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dev_env import MANAGED, OURS, Failure
from dev_env.api import Api
from dev_env.files import TEXTS, Release

NAME, NAMESPACE = OURS, "kube-system"
Key = tuple[str, str]
"""(namespace, name) of a release."""


def key_of(release: Mapping[str, Any]) -> Key:
    """Return the identity of one of helm's releases, as `helm list` gives it."""
    return release["namespace"], release["name"]


def read() -> dict[Key, Release]:
    """Return what was noted; nothing before the first `up`.

    Raises:
        Failure: The ConfigMap of that name is not ours.
    """
    found = Api().get("ConfigMap", NAMESPACE, NAME)
    if found is None:
        return {}
    try:
        noted = json.loads(found["data"]["charts"])
        releases = [_release(name, chart) for name, chart in noted.items()]
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Failure(
            f"the ConfigMap {NAMESPACE}/{NAME} is not what `dev-env up` writes: {error!r}",
            f"look at it: `kubectl -n {NAMESPACE} get configmap {NAME} -o yaml`; rename it if it is yours, else delete "
            "it: only where charts came from is forgotten",
        ) from error
    return {(release.namespace, release.name): release for release in releases}


def _release(name: str, chart: Mapping[str, Any]) -> Release:
    texts = {key: chart[key] for key in TEXTS if isinstance(chart.get(key), str)}
    # Older ones say the name only, and the namespace where it is not `default`.
    return Release(name=name.rpartition("/")[2], **texts)


def remember(known: Mapping[Key, Release], release: Release) -> dict[Key, Release]:
    """Note where a release came from; returns all that is noted then."""
    return _written({**known, (release.namespace, release.name): release})


def forget(known: Mapping[Key, Release], gone: Key) -> dict[Key, Release]:
    """Leave out a release that is gone; returns what is noted then."""
    left = {key: release for key, release in known.items() if key != gone}
    return _written(left) if gone in known else left


def _written(known: dict[Key, Release]) -> dict[Key, Release]:
    # Without values: those that are live are helm's, and a ConfigMap has no room for all of them.
    text = json.dumps({
        f"{namespace}/{name}": {key: text for key in TEXTS if (text := getattr(release, key))}
        for (namespace, name), release in known.items()
    })  # fmt: skip
    meta = {"name": NAME, "namespace": NAMESPACE, "labels": {MANAGED: OURS}}
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"charts": text}}
    Api().apply(wanted)
    return known
