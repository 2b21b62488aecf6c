"""What the settings of k3s say about what dev-env waits for: config.yaml and the files of config.yaml.d.

k3s reads them in this order, by name; a later file wins, and a key that ends in `+` adds to what was said before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dev_env import Failure
from dev_env.bounds import read_text

SETTINGS = Path("/etc/rancher/k3s/config.yaml")
MOST_FILES = 1000


@dataclass(frozen=True)
class Settings:
    """The settings that matter here.

    Attributes:
        disabled: The parts of k3s that its setting `disable` leaves out.
        domain: Of names in the cluster.
        unread: Files that this user may not read: they may say more.
    """

    disabled: frozenset[str] = frozenset()
    domain: str = "cluster.local"
    unread: tuple[str, ...] = ()


def read(config: Path = SETTINGS) -> Settings:
    """Return what the settings of k3s say.

    Raises:
        Failure: A file is not YAML: k3s does not start with it.
    """
    disabled: tuple[str, ...] = ()
    domain = Settings.domain
    unread = []
    for path in _files(config):
        try:
            found = _mapping(path)
        except PermissionError:
            unread.append(str(path))
            continue
        if "disable" in found:
            disabled = tuple(_words(found["disable"]))
        disabled += tuple(_words(found.get("disable+")))
        named = found.get("cluster-domain")
        domain = named if named and isinstance(named, str) else domain
    return Settings(frozenset(disabled), domain, tuple(unread))


def _files(config: Path) -> Iterator[Path]:
    if config.exists():
        yield config
    more = config.with_name(f"{config.name}.d")
    try:
        yield from sorted(path for path in more.iterdir() if path.suffix in (".yaml", ".yml"))[:MOST_FILES]
    except OSError:
        return  # there is none, or k3s alone may look into it


def _mapping(path: Path) -> Mapping[str, Any]:
    path.open("rb").close()  # whether it may be read is not a fault of the file
    try:
        found = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Failure(f"{path} is not YAML: {error}", "correct it, then `sudo systemctl restart k3s`") from error
    return found if isinstance(found, dict) else {}


def _words(value: object) -> Iterator[str]:
    """Yield the words of a setting that is a list, or a text with commas, or a list of such texts."""
    for each in value if isinstance(value, list) else [value]:
        # Nothing else: a mapping or a list that is in itself many times over has no end as a text.
        if isinstance(each, str):
            yield from (word for part in each.split(",") if (word := part.strip()))
