"""Writing YAML: what is read by helm needs a reader of its own, what is written does not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

# Words that need no quotes: they begin with a letter, and YAML reads none of them as something else.
PLAIN = re.compile(r"(?!(?i:y|n|yes|no|on|off|true|false|null)$)[A-Za-z/][A-Za-z0-9_./-]*")


def yaml_text(value: object, indent: int = 0) -> str:
    """Return JSON-like data as YAML, in blocks, each line ended."""
    pad = "  " * indent
    if isinstance(value, Mapping) and value:
        return "".join(_entry(f"{pad}{_scalar(str(key))}:", inner, indent) for key, inner in value.items())
    if isinstance(value, list) and value:
        return "".join(_entry(f"{pad}-", inner, indent) for inner in value)
    return f"{pad}{_scalar(value)}\n"


def _entry(head: str, value: object, indent: int) -> str:
    if isinstance(value, (Mapping, list)) and value:
        return f"{head}\n{yaml_text(value, indent + 1)}"
    return f"{head} {_scalar(value)}\n"


def _scalar(value: object) -> str:
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return value
    text = json.dumps(value, ensure_ascii=False)
    # JSON leaves some characters bare that YAML wants escaped.
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)
