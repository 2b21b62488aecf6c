"""A result of a stage, and the key that names it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmimage.util.json_file import read_json

INPUTS = "inputs.json"
META = "meta.json"
AFTER = "after"
LAYER = "layer"
KEY_LENGTH = 16
MOST_BYTES = 64 << 20
"""Of what is noted of a result."""


def stage_key(inputs: Mapping[str, object]) -> str:
    """Return the key of a stage: the start of the SHA-256 over its inputs as canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def making(stage: str, key: str) -> str:
    """Return the name of the lock that who makes a result holds."""
    return f"{stage}-{key}"


def read_noted(path: Path) -> dict[str, Any]:
    """Read what is noted of a result.

    Raises:
        ValueError: It is not there, or damaged.
    """
    found = read_json(path, MOST_BYTES)
    if not isinstance(found, dict):
        raise ValueError("no mapping")
    return found


@dataclass(frozen=True, kw_only=True)
class Result:
    """A complete result of a stage.

    Attributes:
        meta: What the stage noted: `seconds` it took, `peak_bytes` of disk it used, `content` of its files, and facts
            of its own; `id` is its own name, and `below` that of the result it was made from.
        cached: It was there already.
    """

    stage: str
    path: Path
    key: str
    meta: Mapping[str, Any]
    cached: bool

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the key was made from.

        Raises:
            ValueError: It is gone, since another process removed the result; or it is damaged.
        """
        return read_noted(self.path / INPUTS)

    @property
    def name(self) -> str:
        """STAGE/KEY."""
        return f"{self.stage}/{self.key}"


def _beneath(layers: Iterable[Path]) -> dict[str, object]:
    """Return key -> name of what it stands on, of the folders of layers; of what is gone or damaged, nothing."""
    found = {}
    for path in layers:
        with contextlib.suppress(ValueError, KeyError):
            found[path.name] = read_noted(path / INPUTS)[AFTER]
    return found


def layers_above(name: str, layers: Iterable[Path]) -> list[str]:
    """Return the keys of all layers that stand on a result, the lowest first.

    Args:
        name: STAGE/KEY of the result.
        layers: The folders of all layers.
    """
    below = _beneath(layers)
    found, new = list[str](), [name]
    while new:
        keys = [key for key, under in below.items() if under in new and key not in found]
        found += keys
        new = [f"{LAYER}/{key}" for key in keys]
    return found
