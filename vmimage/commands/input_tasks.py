"""The Invoke task `bundle-inputs`: `tasks.py` is the namespace, and says how tasks are written."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context

from vmimage.commands.chosen import options
from vmimage.commands.task import DEB_MIRROR, JSON, MIRROR, task


@task(
    positional=["image"],
    iterable=["image", "mirror"],
    help={
        "image": "images of images.yaml; several may be given (default: the one that images.yaml names)",
        "output": "the file to write (default inputs.tar)",
        "mirror": MIRROR,
        "deb-mirror": DEB_MIRROR,
        "json": JSON,
    },
)
def bundle_inputs(
    _: Context,
    image: list[str] | None = None,
    output: str = "inputs.tar",
    mirror: list[str] | None = None,
    deb_mirror: str | None = None,
    json: bool = False,
) -> None:
    """Write all that a build needs to one file, for --bundle."""
    from vmimage.commands.bundle_inputs.command import make_bundle

    chosen = options(mirrors=mirror or (), debian_mirror=deb_mirror)
    make_bundle(image or [], chosen, Path(output).absolute(), json=json)
