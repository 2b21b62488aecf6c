"""A result of a stage, and the key that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INPUTS = "inputs.json"
META = "meta.json"
AFTER = "after"
LAYER = "layer"
KEY_LENGTH = 16


def stage_key(inputs: Mapping[str, object]) -> str:
    """Return the key of a stage: the start of the SHA-256 over its inputs as canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


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
        """What the key was made from."""
        found: Mapping[str, Any] = json.loads((self.path / INPUTS).read_text())
        return found

    @property
    def name(self) -> str:
        """STAGE/KEY."""
        return f"{self.stage}/{self.key}"
