"""Writing YAML that Helm's reader and PyYAML read alike."""

from __future__ import annotations

import re

import yaml

# Words that need no quotes: they begin with a letter, and no version of YAML reads one as something else.
PLAIN = re.compile(r"(?!(?i:y|n|yes|no|on|off|true|false|null)$)[A-Za-z/][A-Za-z0-9_./-]*")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML leaves 1e3 and 0o17 bare, which are numbers for Helm.
    style = None if PLAIN.fullmatch(value) else "|" if "\n" in value else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def yaml_text(value: object) -> str:
    """Return JSON-like data as YAML, in blocks."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=float("inf")))
