"""Entries of a machine in a kubeconfig in which others have theirs, of the same names too."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_kubeconfig import K3S, OURS
from vmimage.access.kubeconfig import Config, renamed
from vmimage.access.kubeconfig_entries import left, merged, removed
from vmimage.util.errors import InputError

SERVER = "https://127.0.0.1:6443"


def entry(name: str, inner: str) -> dict[str, Any]:
    return {"name": name, inner: {"server": f"https://{name}.invalid"}, "extensions": [{"x": 1}]}


names = st.lists(st.sampled_from(["a", "b", "c", "d"]), unique=True)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    config: dict[str, Any] = {"kind": "Config", "preferences": {"colors": True}, "unknown": [1]}
    for section, inner in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
        config[section] = [entry(name, inner) for name in draw(names)]
    config["current-context"] = draw(st.sampled_from(["", "a"]))
    return config


@given(present=configs())
def test_others_stay_and_twice_is_once_and_removing_restores(present: dict[str, Any]) -> None:
    both = merged(present, OURS)
    for section in ("clusters", "users", "contexts"):
        assert both[section][: len(present[section])] == present[section]
    assert {key: both[key] for key in ("kind", "preferences", "unknown")} == {
        key: present[key] for key in ("kind", "preferences", "unknown")
    }
    assert merged(both, OURS) == both
    assert both["current-context"] == (present["current-context"] or "dev-env")
    assert removed(both, "dev-env", SERVER) == present
    assert merged(present, OURS, use=True)["current-context"] == "dev-env"


def test_entry_of_the_same_name_with_another_server_needs_force() -> None:
    present = merged({}, renamed(K3S, "dev-env", "https://elsewhere.invalid"))
    with pytest.raises(InputError, match=r"a cluster dev-env already, at https://elsewhere\.invalid"):
        merged(present, OURS)
    assert merged(present, OURS, force=True) == merged({}, OURS)


def marked(server: str) -> dict[str, Any]:
    return {"name": "vmimage", "extension": {"server": server}}


def test_our_entry_of_another_port_is_replaced_and_what_others_note_in_it_stays() -> None:
    present = merged({}, renamed(K3S, "dev-env", "https://localhost:7443"))
    present["clusters"][0]["cluster"]["extensions"].insert(0, {"name": "other", "extension": {"x": 1}})
    present["contexts"][0]["context"]["namespace"] = "shop"
    after = merged(present, OURS)
    assert after["clusters"][0]["cluster"]["server"] == SERVER
    assert [each["name"] for each in after["clusters"][0]["cluster"]["extensions"]] == ["other", "vmimage"]
    assert after["contexts"][0]["context"] == {"namespace": "shop", "cluster": "dev-env", "user": "dev-env"}
    assert merged(after, OURS) == after
    assert removed(after, "dev-env", SERVER)["clusters"] == []


@pytest.mark.parametrize(
    "cluster",
    [
        {"extensions": []},
        {"extensions": "vmimage"},
        {"extensions": [{"name": "vmimage"}]},
        {"extensions": [{"name": "vmimage", "extension": "https://127.0.0.1:7443"}]},
        {"extensions": [{"name": "other", "extension": {"server": "https://127.0.0.1:7443"}}]},
        {"extensions": [marked(SERVER)]},
        {"server": "https://corp.invalid:7443"},
        {"server": "https://corp.invalid:7443", "extensions": [marked("https://corp.invalid:7443")]},
        {"server": "http://127.0.0.1:7443", "extensions": [marked("http://127.0.0.1:7443")]},
        {"server": ["https://127.0.0.1:7443"]},
        {"proxy-url": "http://proxy.invalid"},
    ],
)
def test_what_is_not_marked_for_its_server_is_not_replaced(cluster: dict[str, Any]) -> None:
    present = merged({}, renamed(K3S, "dev-env", "https://127.0.0.1:7443"))
    present["clusters"][0]["cluster"] |= cluster
    with pytest.raises(InputError, match="has a cluster dev-env already"):
        merged(present, OURS)


def test_context_and_user_that_were_put_to_other_use_are_not_replaced() -> None:
    present = merged({}, renamed(K3S, "dev-env", "https://127.0.0.1:7443"))
    present["clusters"].append({"name": "corp", "cluster": {"server": "https://corp.invalid"}})
    present["contexts"].append({"name": "corp", "context": {"cluster": "corp", "user": "dev-env"}})
    with pytest.raises(InputError, match="user dev-env already, of the context corp"):
        merged(present, OURS)


def config(text: str) -> Config:
    """Return ours with other entries before them, or in their place."""
    base = merged({}, OURS)
    for section, entries in yaml.safe_load(text).items():
        names = [entry["name"] for entry in entries]
        base[section] = [*entries, *(entry for entry in base[section] if entry["name"] not in names)]
    return base


CORP = "clusters: [{name: corp, cluster: {server: 'https://k8s.corp.example'}}]\n"
FOREIGN = {
    "context": CORP + "contexts: [{name: dev-env, context: {cluster: corp, user: dev-env, namespace: a}}]",
    "context of another user": "contexts: [{name: dev-env, context: {cluster: dev-env, user: admin}}]",
    "context to nothing": "contexts: [{name: dev-env, context: {cluster: gone, user: dev-env}}]",
    "empty context": "contexts: [{name: dev-env}]",
    "cluster": "clusters: [{name: dev-env, cluster: {server: 'https://127.0.0.1:6444'}}]",
    "cluster by proxy": "clusters: [{name: dev-env, cluster: {server: 'https://127.0.0.1:6443', proxy-url: 'http://x'}}]",
    "cluster of a strange server": "clusters: [{name: dev-env, cluster: {server: 'https://[x'}}]",
    "cluster of no server": "clusters: [{name: dev-env, cluster: {server: [1]}}]",
    "user that runs": "users: [{name: dev-env, user: {exec: {command: aws}}}]",
    "user of another context": CORP + "contexts: [{name: prod, context: {cluster: corp, user: dev-env}}]",
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_replaced_only_when_told(text: str) -> None:
    present = config(text)
    with pytest.raises(InputError, match=r"the kubeconfig has a .* dev-env already, ") as refused:
        merged(present, OURS)
    assert "--force" in refused.value.hint
    after = merged(present, OURS, force=True)
    for section, inner in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
        (entry,) = (entry for entry in after[section] if entry["name"] == "dev-env")
        assert OURS[section][0][inner].items() <= entry[inner].items()


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_not_removed(text: str) -> None:
    present = config(text)
    theirs = [(section, entry) for section, entries in yaml.safe_load(text).items() for entry in entries]
    after = present
    with contextlib.suppress(InputError):
        after = removed(present, "dev-env", SERVER)
    assert all(entry in after[section] for section, entry in theirs)
    after = removed(present, "dev-env", SERVER, force=True)
    assert left(after, "dev-env") == []


def test_a_user_that_no_context_needs_may_be_the_only_copy_of_a_token() -> None:
    present = {"users": [{"name": "dev-env", "user": {"token": "only"}}]}
    with pytest.raises(InputError, match="which no context of this machine needs"):
        merged(present, OURS)
    with pytest.raises(InputError, match="it has a user of that name, which no context"):
        removed(present, "dev-env", SERVER)


def test_other_contexts_keep_what_they_need() -> None:
    present = config("contexts: [{name: team, context: {cluster: dev-env, user: dev-env, namespace: a}}]")
    assert merged(present, OURS) == present
    after = removed(present, "dev-env", SERVER)
    assert [entry["name"] for entry in after["contexts"]] == ["team"]
    assert left(after, "dev-env") == ["cluster dev-env", "user dev-env"]


def test_namespace_of_our_context_stays_when_the_machine_is_a_new_one() -> None:
    present = merged({}, OURS)
    present["contexts"][0]["context"]["namespace"] = "shop"
    present["clusters"][0]["cluster"] |= {"extensions": [1], "certificate-authority-data": "b2xk"}
    after = merged(present, OURS)
    assert after["contexts"][0]["context"] == {"cluster": "dev-env", "user": "dev-env", "namespace": "shop"}
    assert after["clusters"][0]["cluster"] == {**OURS["clusters"][0]["cluster"], "extensions": [1, marked(SERVER)]}


@pytest.mark.parametrize("server", ["https://localhost:6443", "https://127.0.0.1:6443/", "https://[::1]:6443"])
def test_this_host_has_several_names(server: str) -> None:
    present = merged({}, renamed(K3S, "dev-env", server))
    assert merged(present, OURS)["clusters"][0]["cluster"]["server"] == SERVER
    assert left(removed(present, "dev-env", SERVER), "dev-env") == []


def test_machine_elsewhere_is_removed_when_it_is_said_where() -> None:
    present = merged({}, renamed(K3S, "dev-env", "https://192.0.2.7:6443"))
    with pytest.raises(InputError, match=r"not of the machine at https://127\.0\.0\.1:6443.*leads to https://192"):
        removed(present, "dev-env", SERVER)
    assert left(removed(present, "dev-env", "https://192.0.2.7:6443"), "dev-env") == []
    assert removed(present, "other", SERVER) == present


def test_entry_that_is_there_twice_is_there_once() -> None:
    present = merged({}, OURS)
    present["contexts"] *= 2
    assert merged(present, OURS) == merged({}, OURS)
