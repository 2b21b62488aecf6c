"""A result of a stage, and the key that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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
