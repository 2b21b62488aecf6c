"""The size of YAML, computed before it is loaded: with nested aliases, a few bytes become a list of any size."""

from __future__ import annotations

import yaml

# The parser in C, where it is there, is ten times as fast; both say the same.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def require_bounded(text: str, *, nodes: int, depth: int = 50) -> None:
    """Refuse YAML that is larger than a person writes; an alias counts as everything that it stands for.

    Args:
        nodes: Scalars, lists and mappings in it, at most.
        depth: Lists and mappings in each other, at most.

    Raises:
        ValueError: It is larger or deeper, or contains itself; the line is named.
        yaml.YAMLError: It is not YAML.
    """
    sizes = _Sizes(nodes, depth)
    for event in yaml.parse(text, Loader=_LOADER):
        if why := sizes.add(event):
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ValueError(f"line {line}: {why}")


class _Sizes:
    """What the lists and mappings that are open have come to, and those that have names."""

    def __init__(self, nodes: int, depth: int) -> None:
        self._nodes, self._depth = nodes, depth
        # Of an anchor whose node is open still: nothing.
        self._named: dict[str, int | None] = {}
        # The first is the stream.
        self._open: list[tuple[str | None, int]] = [(None, 0)]

    def add(self, event: yaml.Event) -> str:
        """Count an event; returns why that is too much, or nothing."""
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append((event.anchor, 1))
            if event.anchor:
                self._named[event.anchor] = None
            return (
                f"more than {self._depth} lists and mappings in each other" if len(self._open) > self._depth + 1 else ""
            )
        if isinstance(event, yaml.CollectionEndEvent):
            return self._closed(*self._open.pop())
        if isinstance(event, yaml.AliasEvent):
            size = self._named.get(str(event.anchor), 1)
            return f"*{event.anchor:.60} is a part of itself" if size is None else self._closed(None, size)
        return self._closed(event.anchor, 1) if isinstance(event, yaml.ScalarEvent) else ""

    def _closed(self, anchor: str | None, size: int) -> str:
        if anchor:
            self._named[anchor] = size
        outer, before = self._open[-1]
        self._open[-1] = (outer, before + size)
        if before + size > self._nodes:
            return f"more than {self._nodes} values, with those that its aliases stand for"
        return ""
