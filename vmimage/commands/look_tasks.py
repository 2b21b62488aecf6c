"""The Invoke tasks that look into images and change nothing: `size` and `diff`."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context

from vmimage.commands.chosen import options
from vmimage.commands.task import IMAGE, JSON, task


@task(
    positional=["image"],
    optional=["image"],
    help={
        "image": IMAGE,
        "version": "a version in dist/ (default: the latest, or the baked disk if nothing is released)",
        "output": "also draw a picture: an SVG file to write",
        "json": JSON,
    },
)
def size(
    _: Context, image: str | None = None, version: str | None = None, output: str | None = None, json: bool = False
) -> None:
    """Show what takes the space in an image."""
    from vmimage.commands.size.report import tell_size

    tell_size(image, version, options(), output=Path(output).absolute() if output else None, json=json)


@task(
    positional=["a", "b"],
    help={
        "a": "an image file, the folder of a release, or IMAGE or IMAGE/VERSION in dist/",
        "b": "what it is compared with",
        "markdown": "write tables as Markdown",
        "deep": "let diffoscope look into the files that differ",
        "limit": "rows of each table that are shown (default 40; 0: all)",
        "json": JSON,
    },
)
def diff(
    _: Context, a: str, b: str, markdown: bool = False, deep: bool = False, limit: int = 40, json: bool = False
) -> None:
    """Compare two images: packages, pins, files, sizes."""
    from vmimage.commands.diff.report import tell_difference

    tell_difference(a, b, options(), json=json, markdown=markdown, deep=deep, limit=limit)
