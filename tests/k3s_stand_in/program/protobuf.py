"""Kubernetes' protobuf, for the few kinds that kubectl and helm send in it: client-go prefers it to JSON.

Field numbers: the generated.proto of https://github.com/kubernetes/api (core/v1, networking/v1) and apimachinery.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

MAGIC = b"k8s\0"
Schema = dict[int, tuple[str, Any]]

OWNER: Schema = {1: ("kind", "text"), 3: ("name", "text"), 4: ("uid", "text"), 5: ("apiVersion", "text")}
META: Schema = {
    1: ("name", "text"), 2: ("generateName", "text"), 3: ("namespace", "text"), 5: ("uid", "text"),
    6: ("resourceVersion", "text"), 11: ("labels", "map"), 12: ("annotations", "map"), 13: ("ownerReferences", [OWNER]),
}  # fmt: skip
NUMBER_OR_TEXT: Schema = {1: ("type", "number"), 2: ("number", "number"), 3: ("text", "text")}
PORT: Schema = {
    1: ("name", "text"), 2: ("protocol", "text"), 3: ("port", "number"), 4: ("targetPort", NUMBER_OR_TEXT),
    5: ("nodePort", "number"), 6: ("appProtocol", "text"),
}  # fmt: skip
SERVICE: Schema = {1: ("ports", [PORT]), 2: ("selector", "map"), 3: ("clusterIP", "text"), 4: ("type", "text")}
BACKEND: Schema = {4: ("service", {1: ("name", "text"), 2: ("port", {1: ("name", "text"), 2: ("number", "number")})})}
HTTP: Schema = {1: ("paths", [{1: ("path", "text"), 2: ("backend", BACKEND), 3: ("pathType", "text")}])}
RULE: Schema = {1: ("host", "text"), 2: ("value", {1: ("http", HTTP)})}
INGRESS: Schema = {3: ("rules", [RULE]), 4: ("ingressClassName", "text")}
KINDS: dict[str, Schema] = {
    "ConfigMap": {1: ("metadata", META), 2: ("data", "map")},
    "Secret": {1: ("metadata", META), 2: ("data", "bytes map"), 3: ("type", "text"), 4: ("stringData", "map")},
    "Namespace": {1: ("metadata", META)},
    "Service": {1: ("metadata", META), 2: ("spec", SERVICE)},
    "Ingress": {1: ("metadata", META), 2: ("spec", INGRESS)},
}


def decode(data: bytes) -> dict[str, Any]:
    """Return an object.

    Raises:
        KeyError: Of a kind that is not known here.
    """
    envelope = dict(fields(data[len(MAGIC) :]))
    about = {number: value.decode() for number, value in fields(envelope[1])}
    return {"apiVersion": about[1], "kind": about[2], **message(envelope[2], KINDS[about[2]])}


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and bare value of each field."""
    at = 0
    while at < len(data):
        head, at = varint(data, at)
        if head & 7 == 0:
            value, at = varint(data, at)
            yield head >> 3, value
        elif head & 7 == 2:
            size, at = varint(data, at)
            yield head >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {head & 7}")


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def message(data: bytes, schema: Schema) -> dict[str, Any]:
    """Return a message as JSON has it: nothing for what is empty."""
    found: dict[str, Any] = {}
    for number, value in fields(data):
        name, kind = schema.get(number, ("", None))
        if kind == "text" and value:
            found[name] = value.decode()
        elif kind == "number" and value:
            found[name] = value
        elif kind in ("map", "bytes map"):
            pair = dict(fields(value))
            text = pair.get(2, b"")
            found.setdefault(name, {})[pair.get(1, b"").decode()] = (
                base64.b64encode(text).decode() if kind == "bytes map" else text.decode()
            )
        elif isinstance(kind, list):
            found.setdefault(name, []).append(flat(message(value, kind[0])))
        elif kind is NUMBER_OR_TEXT:
            inner = message(value, kind)
            found[name] = inner.get("text") or inner.get("number", 0)
        elif isinstance(kind, dict):
            found[name] = message(value, kind)
    return found


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """Put an inlined message (the rule of an Ingress) where JSON has it."""
    return {**found, **found.pop("value", {})}
