"""`dev-env`, the command inside the machine: a Kubernetes environment for people who need not know Kubernetes.

Python's standard library and PyYAML, which cloud-init brings. What it does to charts, it does by helm, and it shows
each such command.
"""

from __future__ import annotations

from pathlib import Path

SHARE = Path("/usr/local/share/dev-env")
PROFILES = SHARE / "profiles"
READER = SHARE / "reader"
"""A chart that prints its values as JSON: so that values files mean here exactly what they mean to helm."""
RELEASE = Path("/etc/vmimage/release.json")
KUBECONFIG = Path("/etc/rancher/k3s/k3s.yaml")

SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})
MANAGED = "app.kubernetes.io/managed-by"
OURS = "dev-env"


class Failure(Exception):  # noqa: N818 - it is one, and reads so
    """Something is wrong that the user can do something about.

    Attributes:
        hint: What to do.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
