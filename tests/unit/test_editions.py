"""A stage whose code makes something else needs another edition, or old results would be taken for new ones.

Whether code makes something else, only its author knows. So the code is pinned here: who changes it decides.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from pathlib import Path

import pytest

from vmimage import PROJECT
from vmimage.stages.bake.stage import BakeStage
from vmimage.stages.base import BaseStage
from vmimage.stages.export import ExportStage
from vmimage.stages.stage import Keyed
from vmimage.stages.verify.stage import VerifyStage

# Stage -> the code that makes its result (below vmimage/), its edition, and the digest of that code.
PINNED: list[tuple[type[Keyed], str, int, str]] = [
    (BaseStage, "stages/base.py", 4, "d33d88d02e23"),
    (BakeStage, "stages/bake/bake.py stages/bake/layers.py stages/bake/machine.py stages/bake/payload.py "
                "stages/bake/position.py stages/bake/snapshot.py stages/bake/stage.py", 4, "1e9fed49343a"),
    (ExportStage, "stages/export.py formats/*.py", 3, "3eadbd51e0ba"),
    (VerifyStage, "stages/verify/stage.py stages/verify/verdict.py stages/verify/machine.py "
                  "stages/verify/subject.py stages/verify/checks.py", 3, "4fb4745ee285"),
]  # fmt: skip


def code_digest(paths: list[Path]) -> str:
    """Return a digest of Python files without what makes nothing: comments, docstrings, imports, empty lines."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update("\n".join(code_lines(path.read_text())).encode())
    return digest.hexdigest()[:12]


def code_lines(source: str) -> list[str]:
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text or isinstance(node, (ast.Import, ast.ImportFrom)):
            assert isinstance(node, ast.stmt)
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[number - 1] = ""
    return [line.rstrip() for line in lines if line.strip()]


def test_comments_and_docstrings_make_nothing() -> None:
    code = 'import os\ndef f() -> str:\n    """Text."""\n    # why\n\n    return "# no comment"  # why\n'
    assert code_lines(code) == ["def f() -> str:", '    return "# no comment"']


def paths(pattern: str) -> list[Path]:
    found = sorted((PROJECT / "vmimage").glob(pattern))
    assert found, f"there is no {pattern}"
    return found


@pytest.mark.parametrize(("stage", "files", "edition", "digest"), PINNED)
def test_code_of_a_stage_is_that_of_its_edition(stage: type[Keyed], files: str, edition: int, digest: str) -> None:
    found = code_digest([path for file in files.split() for path in paths(file)])
    assert (stage.edition, found) == (edition, digest), (
        f"the code that makes a result of {stage.name} changed: if it now makes something else from the same inputs, "
        f"raise {stage.__name__}.edition; then update its line in PINNED"
    )
