"""What the API says of itself: which resources it has, and that it validates fields."""

from __future__ import annotations

from tests.k3s_stand_in.program.objects import RESOURCES, Object, Refused
from tests.k3s_stand_in.program.version import VERSION

SERVER = {
    "major": "1",
    "minor": "36",
    "gitVersion": VERSION,
    "platform": "linux/amd64",
    "goVersion": "stand-in",
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]


def described(parts: list[str]) -> Object | None:
    """Return what the API says of itself, or None when a resource is asked for."""
    groups = [version for version in RESOURCES if "/" in version]
    if parts == ["version"]:
        return dict(SERVER)
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        found = [{"groupVersion": version, "version": version.split("/")[1]} for version in groups]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [
            {"name": each["groupVersion"].split("/")[0], "versions": [each], "preferredVersion": each} for each in found]}  # fmt: skip
    if parts[:2] == ["openapi", "v3"]:
        return openapi("/".join(parts[2:]))
    version = parts[1] if parts[0] == "api" else "/".join(parts[1:3])
    if version not in RESOURCES or len(parts) > (2 if parts[0] == "api" else 3):
        return None
    resources = []
    for name, (kind, namespaced, short) in RESOURCES[version].items():
        one = {
            "name": name,
            "singularName": kind.lower(),
            "namespaced": namespaced,
            "kind": kind,
            "verbs": VERBS,
            "shortNames": short,
        }
        resources.append(one)
        if version == "apps/v1" and name != "daemonsets":
            resources.append(
                {
                    "name": f"{name}/scale",
                    "singularName": "",
                    "namespaced": True,
                    "group": "autoscaling",
                    "version": "v1",
                    "kind": "Scale",
                    "verbs": ["get", "patch", "update"],
                }
            )
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def openapi(document: str) -> Object:
    """Return OpenAPI documents that say no more than that the server validates fields itself."""
    places = {("api/" if "/" not in version else "apis/") + version: version for version in RESOURCES}
    if not document:
        return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}?hash=1"} for place in places}}
    if document not in places:
        raise Refused(404, "NotFound", "the server could not find the requested resource")
    paths = {}
    group, _, version = places[document].rpartition("/")
    for name, (kind, namespaced, _) in RESOURCES[places[document]].items():
        where = f"/{document}/{'namespaces/{namespace}/' if namespaced else ''}{name}/{{name}}"
        parameters = [
            {"name": each, "in": "query", "schema": {"type": "string"}}
            for each in ("fieldValidation", "dryRun", "fieldManager")
        ]
        gvk = {"group": group, "version": version, "kind": kind}
        paths[where] = {
            "patch": {"parameters": parameters, "x-kubernetes-group-version-kind": gvk, "x-kubernetes-action": "patch"}
        }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION}, "paths": paths}
