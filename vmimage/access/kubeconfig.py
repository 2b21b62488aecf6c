"""`invoke kubeconfig`: the kubeconfig of a running machine, as it is used from here."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import paramiko
import yaml

from vmimage.access.hostname import require_host
from vmimage.access.login import read_answer
from vmimage.util.errors import HostError, InputError
from vmimage.util.ports import require_port
from vmimage.util.run import tail
from vmimage.vm import bounded
from vmimage.vm.limits import KUBECONFIG_SECONDS, SHOWN_LINES

SOURCE = "/etc/rancher/k3s/k3s.yaml"
SECTIONS = {"clusters": "cluster", "users": "user", "contexts": "context"}
# The name of the extension by which an entry says that we wrote it, and for which server. Other programs keep it.
MARK = "vmimage"
AUTHORITY, TOKEN = "certificate-authority-data", "token"
CERTIFICATE = ("client-certificate-data", "client-key-data")
# Hosts that the certificate of every machine names. An address that DHCP gave it is not among them, nor is ::1.
CERTIFIED = ("localhost", "127.0.0.1")
DEPTH = 20
NAME_LENGTH = 200

Config = dict[str, Any]


def fetch(client: paramiko.SSHClient) -> str:
    """Return the kubeconfig of the machine's own cluster.

    Raises:
        InputError: The image has no Kubernetes.
        HostError: The cluster has not started yet, or the answer is longer than any kubeconfig.
    """
    command = f"if [ -e /usr/local/bin/k3s ]; then cat {SOURCE}; else exit 3; fi"
    try:
        session = client.get_transport()
        if session is None:
            raise EOFError("the session has ended")
        with contextlib.closing(bounded.start(session, command)) as channel:
            status, text, errors = read_answer(channel, seconds=KUBECONFIG_SECONDS)
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise HostError(
            f"the machine does not tell its kubeconfig: {str(error) or 'no answer'}", hint="try again in a minute"
        ) from error
    if status == 3:  # noqa: PLR2004 - of the command above
        raise InputError("this machine has no Kubernetes", hint="start an image with k3s, such as dev-env")
    if status:
        raise HostError(f"the cluster is not ready yet{tail(errors, SHOWN_LINES)}", hint="try again in a minute")
    return text


def require_name(context: str) -> None:
    """Check the name of a context.

    Raises:
        InputError: It is none that can be typed.
    """
    if not context.isprintable() or context != context.strip() or not 0 < len(context) <= NAME_LENGTH:
        raise InputError(f"--context {context:.200}: no name of a context", hint="a short text, such as dev-env")


def server_url(host: str, port: int) -> str:
    """Return the URL of a machine's cluster.

    Raises:
        InputError: There is no such host or port.
    """
    require_host(host, "--host")
    require_port(port, "--kubernetes-port")
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
        taken = _taken(source, "clusters", {"server", AUTHORITY})
        user = _taken(source, "users", {*CERTIFICATE, TOKEN})
        if AUTHORITY not in taken or not (TOKEN in user or user.keys() >= set(CERTIFICATE)):
            raise ValueError("certificates are missing")
    except (yaml.YAMLError, ValueError) as error:
        raise HostError(
            f"{SOURCE} of the machine is not a kubeconfig of k3s: {error}", hint="`dev-env doctor` there"
        ) from error
    cluster: Config = {**taken, "server": server}
    if urlsplit(server).hostname not in CERTIFIED:
        cluster |= {"tls-server-name": "localhost"}
    cluster |= {"extensions": [{"name": MARK, "extension": {"server": server}}]}
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
