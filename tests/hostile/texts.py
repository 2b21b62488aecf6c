"""Families of what is read as text: images.yaml, kubeconfigs, values files, user data."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from dev_env import Failure
from dev_env import files as values_files

from tests.conftest import FILES, IMAGES
from tests.hostile.mutations import cuts, flips, mixed, no_files, wrong_values, yaml_texts
from tests.hostile.trial import Case, Family
from tests.tools import plan_of
from tests.unit.test_kubeconfig import K3S, OURS
from tests.unit.test_seed import KEY
from vmimage.access import kubeconfig_file
from vmimage.access.kubeconfig import renamed
from vmimage.access.kubeconfig_entries import merged
from vmimage.access.seed import make_seed
from vmimage.util.files import read_regular
from vmimage.vm.limits import ANSWER_BYTES

good = partial(Case, name="good")
WORDS = "it is another text of the same form, and nothing in the file can tell"
ENDS = "what is left is whole: nothing in the file says how long it is"
DEFAULT = "it has a default"
UNREAD = "nothing of it is taken over, or read by anything here"


def _plan(path: Path, folder: Path) -> object:
    for name, text in FILES.items():
        if name != "images.yaml":
            (folder / "work" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "work" / name).write_text(text)
    (folder / "work/images.yaml").symlink_to(path)
    return plan_of(None, folder / "work")


def _with_all_keys() -> dict[str, Any]:
    """Return images.yaml with the keys that few images need."""
    full: dict[str, Any] = yaml.safe_load(IMAGES)
    full["bases"]["trixie"] |= {
        "snapshot": "2026-11-20T00:00:00Z",
        "exclude": ["/usr/share/doc/*"],
        "keep": ["/usr/share/doc/*/copyright"],
        "initrd": ["virtio_blk"],
    }
    upstream = {"version": "https://u.invalid/v", "sha256": "https://u.invalid/{version}/{arch}", "arch": ["amd64"]}
    full["pins"]["tool"] |= {"purl": "pkg:github/x/tool", "license": "MIT", "bytes": 1000, "upstream": upstream}
    full["images"]["small"]["machine"] = {"cpus": 2, "memory": "2 GiB", "ports": "31000-31010"}
    full["images"]["small"]["formats"] = {"qcow2": {"compression": "zstd"}, "ova": {"level": 5}}
    allowed = {"id": "CVE-2026-1234", "package": "bash", "reason": "not reachable", "until": "2027-01-01"}
    full["vulnerabilities"] = {"block": "fixed", "allow": [allowed]}
    return full


def images_yaml() -> Family:
    data = IMAGES.encode()
    seldom = ("snapshot", "exclude", "keep", "initrd", "purl", "license", "bytes", "upstream", "machine", "vulnerabil")
    return Family(
        read=_plan,
        good=good(data=data),
        cases=(
            *cuts(data),
            *flips(data),
            *mixed(data),
            *yaml_texts(IMAGES),
            *no_files(),
            *wrong_values(yaml.safe_load(IMAGES)),
            *(
                Case(name=f"all keys: {case.name}", data=case.data)
                for case in wrong_values(_with_all_keys())
                if any(key in case.name for key in seldom) and "left out" not in case.name
            ),
        ),
        taken={
            "all keys: *.license: no number": "a text to YAML",
            "*.member: left out": "the file is then the download itself",
            "*.member: an empty list": "the file is then the download itself",
            "components.tool.pins: left out": DEFAULT,
            "components.tool.packages: left out": DEFAULT,
            "images.small.disk: left out": DEFAULT,
        },
        either={"flipped*": WORDS},
    )


def kubeconfigs_of_machines() -> Family:
    def read(path: Path, _: Path) -> object:
        text = read_regular(path, 1 << 26).decode(errors="replace")
        return renamed(text, "dev-env", "https://127.0.0.1:6443")

    return Family(
        read=read,
        good=good(data=K3S.encode()),
        cases=(
            *cuts(K3S.encode()),
            *flips(K3S.encode()),
            *mixed(K3S.encode()),
            *(case for case in yaml_texts(K3S) if len(case.text) < ANSWER_BYTES),  # what is longer is not read
            *wrong_values(yaml.safe_load(K3S)),
        ),
        codes=(3,),
        taken={
            "an object of Python": UNREAD,
            "a number that is none": UNREAD,
            "half a character*": UNREAD,
            "no UTF-8": UNREAD,
            "apiVersion*": UNREAD,
            "kind*": UNREAD,
            "*.name: *": UNREAD,
            "contexts*": UNREAD,
            "current-context*": UNREAD,
            "*.server: left out": UNREAD,
            "twice": "it says the same",
            "*: text: long": "it comes to us only if it is shorter",
            "a key twice": UNREAD,
            "*-data: null": "four letters of base 64, which kubectl judges",
            "*-data: true": "four letters of base 64, which kubectl judges",
        },
        either={"flipped*": WORDS},
    )


THEIRS = "of another cluster than ours, whose entries stay as they are"
MINE = """\
apiVersion: v1
kind: Config
clusters: [{name: mine, cluster: {server: 'https://mine.invalid'}}]
users: [{name: mine, user: {token: x}}]
contexts: [{name: mine, context: {cluster: mine, user: mine, namespace: n}}]
current-context: mine
preferences: {}
"""


def kubeconfigs_of_users() -> Family:
    def read(path: Path, _: Path) -> object:
        path = kubeconfig_file.chosen_file(str(path), {}, path.parent)
        with kubeconfig_file.locked(path):
            present = kubeconfig_file.read(path)
            wanted = merged(present, OURS)
            kubeconfig_file.text_of(wanted)
            return kubeconfig_file.write(path, wanted)

    return Family(
        read=read,
        good=good(data=MINE.encode()),
        cases=(
            *cuts(MINE.encode()),
            *flips(MINE.encode()),
            *mixed(MINE.encode()),
            *yaml_texts(MINE),
            *no_files(),
            *wrong_values(yaml.safe_load(MINE)),
        ),
        taken={
            "empty": "it is as if there were none",
            "an object of Python": f"{THEIRS}; it is not made",
            "a key that is a list": THEIRS,
            "apiVersion*": THEIRS,
            "kind*": THEIRS,
            "preferences*": THEIRS,
            "current-context*": THEIRS,
            "clusters: left out": DEFAULT,
            "users: left out": DEFAULT,
            "contexts: left out": DEFAULT,
            "*.name: text: *": "any text is a name",
            "*.cluster: left out": DEFAULT,
            "*.user: left out": DEFAULT,
            "*.context: left out": DEFAULT,
            "*.server: *": THEIRS,
            "*.token: left out": THEIRS,
            "contexts.0.context: an empty mapping": THEIRS,
            "*.context.*": THEIRS,
        },
        either={"flipped*": WORDS},
    )


VALUES = """\
description: mine
charts:
  shop:
    chart: oci://registry.invalid/web
    repo: ""
    version: '1.10'
    namespace: default
    values: {replicas: 2, list: [1, a]}
"""


def values_of_charts() -> Family:
    """What is read before helm, and of what helm says; helm itself is not asked (test_dev_env_files.py)."""

    def read(path: Path, _: Path) -> object:
        values_files._read_by_helm = _as_helm
        return values_files.merged([values_files.read(values_files.find(str(path)))])

    return Family(
        read=read,
        good=good(data=VALUES.encode()),
        cases=(
            *cuts(VALUES.encode()),
            *flips(VALUES.encode()),
            *mixed(VALUES.encode()),
            *(case for case in yaml_texts(VALUES) if case.name not in ("names of names of lists", "a list in itself")),
            *no_files(),
            *wrong_values(yaml.safe_load(VALUES)),
        ),
        codes=(1,),
        taken={
            "cut at [3-6]/8": ENDS,
            "description: *": "it is for people alone",
            "charts.shop: left out": "an environment without charts",
            "charts.shop.repo: left out": DEFAULT,
            "charts.shop.version: left out": DEFAULT,
            "charts.shop.version: no number": "a text to YAML, which helm judges",
            "charts.shop.namespace: left out": DEFAULT,
            "charts.shop.namespace: text: none": DEFAULT,
            "charts.shop.values: left out": DEFAULT,
            "charts.shop.values.*": "the chart judges it",
        },
        either={"flipped*": WORDS},
    )


def _as_helm(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, ValueError) as error:
        raise Failure(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise Failure(f"{path} cannot be read: no mapping")
    return data


CLOUD = """\
#cloud-config
hostname: box
users: [{name: alice, groups: [sudo]}, default]
user: {name: dev}
ssh_authorized_keys: [ssh-ed25519 AAAA other]
cloud_init_modules: [users_groups, ssh]
system_info: {default_user: {name: dev}}
runcmd: [date]
"""


ANOTHER = "of another user than dev, who has the keys all the same"


def user_data() -> Family:
    def read(path: Path, folder: Path) -> object:
        make_seed(folder / "seed.iso", public_keys=[KEY], hostname="box", user_data=path, force=False)
        return (folder / "seed.iso").stat().st_size

    kinds = (
        "#!/bin/sh",
        "#include",
        "#cloud-boothook",
        "## template: jinja",
        "From x",
        "MIME-Version: 1.0",
        "\x1f\x8b",
    )
    return Family(
        read=read,
        good=good(data=CLOUD.encode()),
        cases=(
            *cuts(CLOUD.encode()),
            *flips(CLOUD.encode()),
            *mixed(CLOUD.encode()),
            *yaml_texts(CLOUD),
            *no_files(),
            *wrong_values(yaml.safe_load(CLOUD), write=lambda data: f"#cloud-config\n{json.dumps(data)}"),
            *(Case(name=f"another kind: {kind!r}", data=f"{kind}\nx: 1\n".encode("latin-1")) for kind in kinds),
        ),
        taken={
            "twice": "cloud-init reads the last of two keys, and so do we",
            "a key twice": "cloud-init reads the last of two keys, and so do we",
            "*: left out": DEFAULT,
            "user: text: none": DEFAULT,
            "ssh_authorized_keys: text: *": "sshd takes no notice of a line that is no key",
            "ssh_authorized_keys.0: text: *": "sshd takes no notice of a line that is no key",
        },
        either={
            "flipped*": WORDS,
            "users.0.groups*": f"{ANOTHER}; half a character is refused by some of YAML's readers",
            "runcmd*": "commands of its author; half a character is refused by some of YAML's readers",
        },
    )


TEXTS: dict[str, Callable[[Path], Family]] = {
    "images.yaml": lambda base: images_yaml(),
    "kubeconfigs of machines": lambda base: kubeconfigs_of_machines(),
    "kubeconfigs of users": lambda base: kubeconfigs_of_users(),
    "values files": lambda base: values_of_charts(),
    "user data": lambda base: user_data(),
}
