"""The entries of a machine in a kubeconfig. Their contents, not their names, tell which of them are ours.

- A cluster is ours if it has our server and holds nothing that we do not write. So it is with another port of the same
  host, if its mark says that we wrote it for the server that it has.
- A context is ours if it joins this cluster with the user of the same name.
- A user is ours if such a context needs it, and no context that leads elsewhere does.

All functions here are pure.
"""

from __future__ import annotations

import copy
from typing import Any
from urllib.parse import urlsplit

from vmimage.access.kubeconfig import AUTHORITY, CERTIFICATE, MARK, SECTIONS, TOKEN, Config
from vmimage.util.errors import InputError

# What a machine's entry may say and still be ours: what we write, and what other programs note there for themselves.
WRITTEN = {
    "clusters": {"server", AUTHORITY, "tls-server-name", "extensions"},
    "users": {*CERTIFICATE, TOKEN, "extensions"},
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HTTPS_PORT = 443


def merged(present: Config, ours: Config, *, force: bool = False, use: bool = False) -> Config:
    """Return a kubeconfig with our entries in it.

    Args:
        force: Replace entries of our name that are not ours.
        use: Make ours the current context; this also happens if there was none.

    Raises:
        InputError: An entry of our name exists and is not ours.
    """
    name, server = ours["current-context"], ours["clusters"][0]["cluster"]["server"]
    if not force:
        _require_ours(present, name, _at_other_port(present, name, server) or server)
    result = copy.deepcopy(present) or {"apiVersion": "v1", "kind": "Config"}
    for section, inner in SECTIONS.items():
        (new,) = ours[section]
        entries = result[section] = result.get(section) or []
        first = next((index for index, entry in enumerate(entries) if entry["name"] == name), len(entries))
        kept = _kept(section, entries[first].get(inner) or {}) if first < len(entries) else {}
        _delete(entries, name)
        said = {**kept, **new[inner]}
        if "extensions" in new[inner]:
            said["extensions"] = [*_of_others(kept.get("extensions")), *new[inner]["extensions"]]
        entries.insert(first, {"name": name, inner: said})
    if use or not result.get("current-context"):
        result["current-context"] = name
    return result


def _require_ours(present: Config, name: str, server: str) -> None:
    for section, inner in SECTIONS.items():
        for why in (_foreign(present, section, entry, server) for entry in _named(present, section, name)):
            if why:
                raise InputError(
                    f"the kubeconfig has a {inner} {name} already, {why}",
                    hint="give ours another name with --context, or replace that one with --force",
                )


def _at_other_port(present: Config, name: str, wanted: str) -> str:
    """Return the server of our cluster of a name, if we wrote it for another port of the same host; else nothing."""
    found = [entry.get("cluster") or {} for entry in _named(present, "clusters", name)]
    servers = {each.get("server") for each in found if isinstance(each.get("server"), str)}
    marks = [mark.get("extension") for each in found for mark in _extensions(each.get("extensions")) if _is_mark(mark)]
    if len(servers) != 1 or len(marks) != len(found) or not all(isinstance(mark, dict) for mark in marks):
        return ""
    (server,) = servers
    ours = all(mark.get("server") == server for mark in marks)
    return str(server) if ours and _place(str(server))[:2] == _place(wanted)[:2] else ""


def _of_others(extensions: object) -> list[Any]:
    return [each for each in _extensions(extensions) if not _is_mark(each)]


def _extensions(said: object) -> list[Any]:
    return said if isinstance(said, list) else []


def _is_mark(extension: object) -> bool:
    return isinstance(extension, dict) and extension.get("name") == MARK


def removed(present: Config, name: str, server: str, *, force: bool = False) -> Config:
    """Return a kubeconfig without our entries of a name; what another context needs stays.

    Args:
        force: Also those that are not ours.

    Raises:
        InputError: There are entries of that name, and none of them is ours.
    """
    reasons = {
        section: [_foreign(present, section, entry, server) for entry in _named(present, section, name)]
        for section in SECTIONS
    }
    result = copy.deepcopy(present)
    # Contexts first: what they alone needed is needed no more.
    for section in reversed(SECTIONS):
        needed = section != "contexts" and _users(result, section, name)
        if force or not (any(reasons[section]) or needed):
            _delete(result.get(section) or [], name)
    if left(present, name) and left(result, name) == left(present, name):
        found = [(SECTIONS[section], why) for section in reversed(SECTIONS) for why in reasons[section] if why]
        inner, why = found[0]
        raise InputError(
            f"{name} in the kubeconfig is not of the machine at {server}: it has a {inner} of that name, {why}",
            hint="say where the machine is (--host, --kubernetes-port), or remove it all the same with --force",
        )
    if result.get("current-context") == name and not _named(result, "contexts", name):
        result["current-context"] = ""
    return result


def _delete(entries: list[Any], name: str) -> None:
    for index in reversed(range(len(entries))):
        if entries[index]["name"] == name:
            del entries[index]


def excerpt(config: Config, name: str) -> Config:
    """Return what a kubeconfig says of a name, and what is current: all that is changed here."""
    entries = {section: _named(config, section, name) for section in SECTIONS}
    return {**entries, "current-context": config.get("current-context")}


def left(config: Config, name: str) -> list[str]:
    """Return the entries of a name, for people: cluster, user, context."""
    return [f"{inner} {name}" for section, inner in SECTIONS.items() if _named(config, section, name)]


def _foreign(config: Config, section: str, entry: Any, server: str) -> str:
    """Return why an entry is not ours; empty if it is."""
    said = entry.get(SECTIONS[section]) or {}
    if section == "contexts":
        return _foreign_context(config, entry, server)
    unknown = sorted(str(key) for key in said if key not in WRITTEN[section])
    if unknown:
        return f"which says {', '.join(unknown):.200}"
    if section == "clusters":
        return "" if _same(said.get("server"), server) else f"at {said.get('server')}"
    contexts = _users(config, "users", entry["name"])
    elsewhere = [context for context in contexts if not _at(config, context, server)]
    if elsewhere:
        return f"of the context {elsewhere[0]['name']}, which leads elsewhere"
    return "" if contexts else "which no context of this machine needs"


def _foreign_context(config: Config, entry: Any, server: str) -> str:
    name, said = entry["name"], entry.get("context") or {}
    if not _at(config, entry, server):
        clusters = _named(config, "clusters", said.get("cluster"))
        other = next(((cluster.get("cluster") or {}).get("server") for cluster in clusters), "no cluster that is there")
        return f"which leads to {other}"
    if (said.get("cluster"), said.get("user")) != (name, name):
        return f"which joins the cluster {said.get('cluster')} and the user {said.get('user')}"
    return ""


def _at(config: Config, context: Any, server: str) -> bool:
    """Tell whether a context leads to a server."""
    cluster = (context.get("context") or {}).get("cluster")
    found = [(entry.get("cluster") or {}).get("server") for entry in _named(config, "clusters", cluster)]
    return bool(found) and all(_same(each, server) for each in found)


def _same(one: object, other: str) -> bool:
    """Tell whether two URLs are of one server; this host has several names."""
    return isinstance(one, str) and _place(one) == _place(other)


def _place(url: str) -> tuple[object, ...]:
    try:
        parts = urlsplit(url)
        host = "localhost" if parts.hostname in LOOPBACK else parts.hostname
        return parts.scheme, host, parts.port or HTTPS_PORT, parts.path.strip("/"), parts.username, parts.query
    except ValueError:
        return (url,)


def _named(config: Config, section: str, name: object) -> list[Any]:
    return [entry for entry in config.get(section) or [] if entry["name"] == name]


def _users(config: Config, section: str, name: str) -> list[Any]:
    """Return the contexts that need a cluster or a user."""
    key = SECTIONS[section]
    return [context for context in config.get("contexts") or [] if (context.get("context") or {}).get(key) == name]


def _kept(section: str, said: Any) -> dict[str, Any]:
    """Return what stays of an entry of ours that is written anew: in a context, such as its namespace, all else."""
    return {key: value for key, value in said.items() if section == "contexts" or key == "extensions"}
