from __future__ import annotations

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
