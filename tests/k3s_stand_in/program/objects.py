"""The objects of a cluster: kept, found by selectors, watched, patched; and what a real control plane does to them."""

from __future__ import annotations

import copy
import json
import re
import secrets
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]
"""Resource, namespace, name."""

# group/version -> resource -> kind, whether it is in a namespace, short names.
RESOURCES: dict[str, dict[str, tuple[str, bool, list[str]]]] = {
    "v1": {
        "namespaces": ("Namespace", False, ["ns"]),
        "nodes": ("Node", False, ["no"]),
        "pods": ("Pod", True, ["po"]),
        "services": ("Service", True, ["svc"]),
        "endpoints": ("Endpoints", True, ["ep"]),
        "configmaps": ("ConfigMap", True, ["cm"]),
        "secrets": ("Secret", True, []),
        "serviceaccounts": ("ServiceAccount", True, ["sa"]),
        "events": ("Event", True, ["ev"]),
        "persistentvolumeclaims": ("PersistentVolumeClaim", True, ["pvc"]),
    },
    "apps/v1": {
        "deployments": ("Deployment", True, ["deploy"]),
        "replicasets": ("ReplicaSet", True, ["rs"]),
        "statefulsets": ("StatefulSet", True, ["sts"]),
        "daemonsets": ("DaemonSet", True, ["ds"]),
    },
    "batch/v1": {"jobs": ("Job", True, []), "cronjobs": ("CronJob", True, ["cj"])},
    "networking.k8s.io/v1": {
        "ingresses": ("Ingress", True, ["ing"]),
        "ingressclasses": ("IngressClass", False, []),
        "networkpolicies": ("NetworkPolicy", True, ["netpol"]),
    },
    "discovery.k8s.io/v1": {"endpointslices": ("EndpointSlice", True, [])},
    "coordination.k8s.io/v1": {"leases": ("Lease", True, [])},
    "rbac.authorization.k8s.io/v1": {
        "roles": ("Role", True, []),
        "rolebindings": ("RoleBinding", True, []),
        "clusterroles": ("ClusterRole", False, []),
        "clusterrolebindings": ("ClusterRoleBinding", False, []),
    },
    "apiextensions.k8s.io/v1": {"customresourcedefinitions": ("CustomResourceDefinition", False, ["crd"])},
}
GROUP_OF = {resource: version for version, found in RESOURCES.items() for resource in found}


class Refused(Exception):  # noqa: N818 - as an answer of the API
    """An answer that is an error: its HTTP status, Kubernetes' reason and a message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


def now() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Objects:
    """All objects, in a file that survives restarts."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.changed = threading.Condition(threading.RLock())
        self.events: list[tuple[int, str, str, Object]] = []
        self.applied: dict[str, Object] = {}
        state: Any = json.loads(file.read_text()) if file.exists() else {"revision": 1, "objects": []}
        self.revision: int = state["revision"]
        self.objects: dict[Key, Object] = {tuple(key): found for key, found in state["objects"]}

    def save(self) -> None:
        """Write all to the file, by a rename."""
        state = {"revision": self.revision, "objects": [[list(key), found] for key, found in self.objects.items()]}
        beside = self.file.with_suffix(".new")
        beside.write_text(json.dumps(state))
        beside.replace(self.file)

    def find(self, resource: str, namespace: str = "", labels: str = "", fields: str = "") -> list[Object]:
        """Return objects; of all namespaces when none is given."""
        with self.changed:
            return [
                copy.deepcopy(found)
                for (kind, where, _), found in sorted(self.objects.items())
                if kind == resource and namespace in ("", where) and suits(found, labels, fields)
            ]

    def get(self, key: Key) -> Object:
        """Return one object.

        Raises:
            Refused: It is not there.
        """
        with self.changed:
            if key not in self.objects:
                raise missing(key)
            return copy.deepcopy(self.objects[key])

    def put(self, key: Key, wanted: Object) -> Object:
        """Store an object, new or changed, and tell those who watch."""
        with self.changed:
            old = self.objects.get(key)
            meta = wanted["metadata"]
            if old and without_revision(old) == without_revision(wanted):
                return copy.deepcopy(old)
            self.revision += 1
            meta["resourceVersion"] = str(self.revision)
            if not old:
                meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "generation": 1}
            else:
                meta["uid"], meta["creationTimestamp"] = old["metadata"]["uid"], old["metadata"]["creationTimestamp"]
                same = old.get("spec") == wanted.get("spec")
                meta["generation"] = old["metadata"].get("generation", 1) + (not same)
            self.objects[key] = copy.deepcopy(wanted)
            self._tell("MODIFIED" if old else "ADDED", key[0], wanted)
            return copy.deepcopy(wanted)

    def remove(self, key: Key) -> Object:
        """Remove an object, and what belongs to it."""
        with self.changed:
            gone = self.get(key)
            del self.objects[key]
            self.applied = {name: kept for name, kept in self.applied.items() if not name.endswith("/".join(key))}
            self.revision += 1
            gone["metadata"]["resourceVersion"] = str(self.revision)
            self._tell("DELETED", key[0], gone)
            uid = gone["metadata"]["uid"]
            for other, found in list(self.objects.items()):
                owners = found["metadata"].get("ownerReferences", [])
                belongs = any(owner["uid"] == uid for owner in owners)
                if other in self.objects and (belongs or (key[0] == "namespaces" and other[1] == key[2])):
                    self.remove(other)
            return gone

    def _tell(self, kind: str, resource: str, found: Object) -> None:
        self.events.append((self.revision, resource, kind, copy.deepcopy(found)))
        self.save()
        self.changed.notify_all()

    def watch(self, resource: str, since: int, seconds: float) -> Iterator[list[tuple[str, Object]]]:
        """Yield what happens after a revision, for some time; an empty list now and then."""
        end = threading.Event()
        timer = threading.Timer(seconds, end.set)
        timer.daemon = True
        timer.start()
        seen = since
        while not end.is_set():
            with self.changed:
                news = [
                    (kind, found) for number, what, kind, found in self.events if number > seen and what == resource
                ]
                seen = self.revision
                if not news:
                    self.changed.wait(1.0)
            yield news
        timer.cancel()


def missing(key: Key) -> Refused:
    """Return the answer for an object that is not there."""
    return Refused(404, "NotFound", f'{qualified(key[0])} "{key[2]}" not found')


def qualified(resource: str) -> str:
    """Return a resource with its group, as it stands in messages."""
    group = GROUP_OF[resource].rpartition("/")[0]
    return f"{resource}.{group}" if group else resource


def without_revision(found: Object) -> Object:
    """Return what two versions of an object are compared by."""
    meta = {key: value for key, value in found["metadata"].items()
            if key not in ("resourceVersion", "generation", "uid", "creationTimestamp", "managedFields")}  # fmt: skip
    return {**found, "metadata": meta}


def suits(found: Object, labels: str, fields: str) -> bool:
    """Tell whether an object is selected."""
    return labels_suit(found, labels) and fields_suit(found, fields)


def labels_suit(found: Object, labels: str) -> bool:
    """Tell whether an object has the labels of a selector."""
    own = found["metadata"].get("labels") or {}
    for part in re.split(r",(?![^(]*\))", labels) if labels else []:
        match = re.fullmatch(r"\s*(!?)([^\s!=(]+)\s*(?:(==|=|!=)\s*(\S*)|(in|notin)\s*\(([^)]*)\))?\s*", part)
        if not match:
            raise Refused(400, "BadRequest", f"unable to parse requirement: {part}")
        negated, key, sign, value, among, values = match.groups()
        if sign:
            good = (own.get(key) == value) == (sign != "!=")
        elif among:
            good = (own.get(key) in [each.strip() for each in values.split(",")]) == (among == "in")
        else:
            good = (key in own) == (not negated)
        if not good:
            return False
    return True


def fields_suit(found: Object, fields: str) -> bool:
    """Tell whether an object has the fields of a selector."""
    for part in fields.split(",") if fields else []:
        key, sign, value = re.split(r"(!=|==|=)", part, maxsplit=1)
        at: Any = found
        for name in key.split("."):
            at = at.get(name, "") if isinstance(at, dict) else ""
        if (str(at) == value) != (sign != "!="):
            return False
    return True


def generated(prefix: str) -> str:
    """Return a name for `generateName`."""
    return prefix + secrets.token_hex(3)[:5]
