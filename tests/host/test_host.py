from __future__ import annotations

from pathlib import Path

import pytest

from vmimage.host import (
    tool_version,
    tools,
    version_tuple,
)


def test_every_tool_has_a_reason_and_tells_its_version() -> None:
    for tool in tools():
        assert tool.package
        assert tool.why
        if tool.minimum:
            assert version_tuple(tool_version(tool.program)) >= version_tuple(tool.minimum), tool


def test_program_of_another_path_tells_its_own_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tool_version("qemu-img")
    program = tmp_path / "qemu-img"
    program.write_text("#!/bin/sh\necho version 1.2\n")
    program.chmod(0o755)
    with monkeypatch.context() as changed:
        changed.setenv("PATH", str(tmp_path), prepend=":")
        assert tool_version("qemu-img") == "1.2"
        program.write_text("#!/bin/sh\necho version 1.2.3\n")
        assert tool_version("qemu-img") == "1.2.3"
    assert tool_version("qemu-img") == found
