"""`invoke kubeconfig`: a context for a running machine in the user's kubeconfig, which otherwise stays as it is."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import paramiko
import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vmimage.access.login import read_answer
from vmimage.util.errors import HostError, InputError
from vmimage.util.files import written_beside

SOURCE = "/etc/rancher/k3s/k3s.yaml"
SECTIONS = {"clusters": "cluster", "users": "user", "contexts": "context"}
AUTHORITY, TOKEN = "certificate-authority-data", "token"
CERTIFICATE = ("client-certificate-data", "client-key-data")
# Hosts that the certificate of every machine names. An address that DHCP gave it is not among them, nor is ::1.
CERTIFIED = ("localhost", "127.0.0.1")
DEPTH = 20
KEPT_BACKUPS = 5
SECONDS = 30.0

Config = dict[str, Any]


def fetch(client: paramiko.SSHClient) -> str:
    """Return the kubeconfig of the machine's own cluster.

    Raises:
        InputError: The image has no Kubernetes.
        HostError: The cluster has not started yet, or the answer is longer than any kubeconfig.
    """
    command = f"if [ -e /usr/local/bin/k3s ]; then cat {SOURCE}; else exit 3; fi"
    try:
        _, stdout, _ = client.exec_command(command, timeout=SECONDS)
        status, text, errors = read_answer(stdout.channel, seconds=SECONDS)
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise HostError(
            f"the machine does not tell its kubeconfig: {str(error) or 'no answer'}", hint="try again in a minute"
        ) from error
    if status == 3:  # noqa: PLR2004 - of the command above
        raise InputError("this machine has no Kubernetes", hint="start an image with k3s, such as dev-env")
    if status:
        raise HostError(f"the cluster is not ready yet: {errors.strip()}", hint="try again in a minute")
    return text


def server_url(host: str, port: int) -> str:
    """Return the URL of a machine's cluster."""
    return f"https://[{host.replace('%', '%25')}]:{port}" if ":" in host else f"https://{host}:{port}"


def renamed(text: str, name: str, server: str) -> Config:
    """Return the machine's kubeconfig with one name for its cluster, user and context, as reached from here.

    A kubeconfig can name programs that kubectl runs here, and files of this host that it sends. So nothing is taken
    over but certificates, keys and tokens.

    Raises:
        HostError: It is not what k3s writes.
    """
    try:
        source = _parsed(text)
        cluster = _taken(source, "clusters", {"server", AUTHORITY})
        user = _taken(source, "users", {*CERTIFICATE, TOKEN})
        if AUTHORITY not in cluster or not (TOKEN in user or user.keys() >= set(CERTIFICATE)):
            raise ValueError("certificates are missing")
    except (yaml.YAMLError, ValueError) as error:
        raise HostError(
            f"{SOURCE} of the machine is not a kubeconfig of k3s: {error}", hint="`dev-env doctor` there"
        ) from error
    cluster |= {"server": server}
    if urlsplit(server).hostname not in CERTIFIED:
        cluster |= {"tls-server-name": "localhost"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


def _parsed(text: str) -> Any:
    """Parse YAML in which every scalar is a text, and nothing is large or deep."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > DEPTH:
            raise ValueError("it has aliases, or is too deep")
    return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - the loader that makes nothing but texts


def _taken(source: Any, section: str, allowed: Collection[str]) -> dict[str, str]:
    """Return the first entry of a section, every value of which is what it has to be."""
    inner = SECTIONS[section]
    try:
        entry = dict(source[section][0][inner])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"it names no {inner}") from error
    for key, value in entry.items():
        if key not in allowed:
            raise ValueError(f"{key!r:.60} is not taken from a machine")
        if not isinstance(value, str) or not re.fullmatch("[!-~]+", value):
            raise ValueError(f"{key} is not a text")
        if key.endswith("-data"):
            base64.b64decode(value, validate=True)
    return entry


def merged(present: Config, ours: Config, *, force: bool = False, use: bool = False) -> Config:
    """Return a kubeconfig with our entries in it; pure.

    Args:
        force: Replace an entry of our name that leads to another server.
        use: Make ours the current context; it is also when there was none.

    Raises:
        InputError: There is such an entry, and it may not be replaced.
    """
    name, server = ours["current-context"], ours["clusters"][0]["cluster"]["server"]
    for entry in present.get("clusters") or []:
        other = (entry.get("cluster") or {}).get("server")
        if entry["name"] == name and other != server and not force:
            raise InputError(
                f"the kubeconfig has a cluster {name} already, at {other}",
                hint="give ours another name with --context, or replace that one with --force",
            )
    result = copy.deepcopy(present) or {"apiVersion": "v1", "kind": "Config"}
    for section in SECTIONS:
        (new,) = ours[section]
        entries = result[section] = result.get(section) or []
        where = [index for index, entry in enumerate(entries) if entry["name"] == name]
        for index in where:
            entries[index] = new
        if not where:
            entries.append(new)
    if use or not result.get("current-context"):
        result["current-context"] = name
    return result


def removed(present: Config, name: str) -> Config:
    """Return a kubeconfig without the entries of a name; pure."""
    result = copy.deepcopy(present)
    for section in SECTIONS:
        entries = result.get(section) or []
        for index in reversed(range(len(entries))):
            if entries[index]["name"] == name:
                del entries[index]
    if result.get("current-context") == name:
        result["current-context"] = ""
    return result


def read(path: Path) -> Config:
    """Read a kubeconfig; an absent or empty one is empty.

    Raises:
        InputError: It is not a kubeconfig; the line is named where there is one.
    """
    try:
        data = _round_trip().load(path.read_text()) if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="nothing was changed") from error
    # Values that are not of the type that they name, such as `!!int x`, are ValueErrors.
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {error}", hint="correct it; nothing was changed") from error
    if data is None:
        return {}
    for section, inner in SECTIONS.items():
        entries = data.get(section) if isinstance(data, dict) else [None]
        if not all(isinstance(entry, dict) and "name" in entry for entry in entries or []):
            raise InputError(f"{path}: {section} is not a list of name and {inner}", hint="nothing was changed")
    return cast("Config", data)


def chosen_file(given: str | None, environment: Mapping[str, str], home: Path) -> Path:
    """Return the file that kubectl would write to."""
    named = [part for part in environment.get("KUBECONFIG", "").split(os.pathsep) if part]
    path = Path(given or (named[0] if named else home / ".kube" / "config")).expanduser()
    return path.resolve()


def text_of(config: Config) -> str:
    """Return a kubeconfig as YAML; one that was read keeps its comments, quotes and order."""
    text = io.StringIO()
    _round_trip().dump(config, text)
    return text.getvalue()


def _round_trip() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    # Certificates are long words; a line that is broken is no longer as its user wrote it.
    yaml.width = 1 << 20
    return yaml


def write(path: Path, config: Config) -> Path | None:
    """Replace a kubeconfig, whole and readable by its user only; returns the backup of the old one, if any."""
    backup = None
    if path.exists():
        backup = path.with_name(f"{path.name}.vmimage-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
        shutil.copy2(path, backup)
        for old in sorted(path.parent.glob(f"{path.name}.vmimage-*"))[:-KEPT_BACKUPS]:
            old.unlink()
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    with written_beside(path, mode=mode) as beside:
        beside.write_text(text_of(config))
    return backup


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that kubectl takes, too.

    Raises:
        HostError: Somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = path.with_name(f"{path.name}.lock")
    try:
        lock.touch(mode=0o600, exist_ok=False)
    except FileExistsError as error:
        hint = "wait for the kubectl that holds it; remove it if there is none"
        raise HostError(f"{lock} is held by another program", hint=hint) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
