"""Jinja2 as this project uses it: an unknown name is an error, and values are quoted for where they go."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vmimage.util.markdown import code

if TYPE_CHECKING:
    import jinja2


def hcl_string(value: str) -> str:
    """Quote a string for HCL2 so that Packer reads exactly these characters.

    HCL2's quoted form takes JSON's escapes, and would expand `${` and `%{` if they were not doubled.
    Packer's own Go templates (`{{ .Name }}`) are a later layer and pass through.
    Source: https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md#template-expressions
    """
    return json.dumps(value, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")


def render(template: Path, values: Mapping[str, object]) -> str:
    """Render a template file.

    Filters: `hcl` (an HCL string), `sh` (a shell word), `code` (Markdown's code in a table), and Jinja2's own.

    Raises:
        jinja2.UndefinedError: The template uses a name that `values` does not give.
    """
    return _environment(template.parent).get_template(template.name).render(values)


@functools.lru_cache(maxsize=8)
def _environment(folder: Path) -> jinja2.Environment:
    """Return what renders the templates of a folder: each is compiled once, and again when its file has changed."""
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - what is rendered is HCL, shell and Markdown, not HTML
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["hcl"] = hcl_string
    environment.filters["sh"] = shlex.quote
    environment.filters["code"] = code
    return environment
