"""Objects that two charts would make: what is read of a manifest, without helm."""

from __future__ import annotations

import json

import pytest
from dev_env import conflicts
from dev_env.conflicts import objects_in

BOMB = "a: &a [x, x]\n" + "".join(
    f"b{step}: &{chr(98 + step)} [{', '.join([f'*{chr(97 + step)}'] * 10)}]\n" for step in range(25)
)


def test_an_object_is_its_kind_its_namespace_and_its_name() -> None:
    text = """
# Source: shop/templates/a.yaml
kind: ConfigMap
metadata: {name: a}
---
kind: ConfigMap
metadata: {name: a, namespace: other}
---
kind: ClusterRole
metadata: {name: reader}
---
kind: List
items:
  - {kind: Service, metadata: {name: s}}
  - {kind: Service, metadata: {name: t, namespace: other}}
---
"""
    assert list(objects_in(text, "shop")) == [
        ("ConfigMap", "shop", "a"),
        ("ConfigMap", "other", "a"),
        ("ClusterRole", "", "reader"),
        ("Service", "shop", "s"),
        ("Service", "other", "t"),
    ]
    assert conflicts.told({("ConfigMap", "shop", "a")}) == "ConfigMap shop/a"
    assert conflicts.told({("ClusterRole", "", "reader")}) == "ClusterRole reader"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "text",
        "- a",
        "kind: List\nitems: 1",
        "kind: List\nitems: [1, [2], null, {}]",
        "kind: Service",
        "kind: Service\nmetadata: a",
        "kind: Service\nmetadata: {name: [a]}",
        "kind: Service\nmetadata: {name: 1}",
        "kind: [a]\nmetadata: {name: a}",
        BOMB + "kind: *z\nmetadata: {name: *z, namespace: *z}",
        BOMB + "kind: List\nitems: *z",
        json.dumps({"kind": "Service", "metadata": {"name": ""}}),
    ],
)
def test_what_is_no_object_is_none(text: str) -> None:
    assert list(objects_in(text, "shop")) == []
