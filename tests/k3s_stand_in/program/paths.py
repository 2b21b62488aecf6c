"""Where k3s has its data."""

from pathlib import Path

DATA = Path("/var/lib/rancher/k3s")
