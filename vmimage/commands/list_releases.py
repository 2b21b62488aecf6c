"""`invoke list`: the images, and their releases in dist/."""

from __future__ import annotations

from vmimage.commands.session import session
from vmimage.spec.load import load_spec
from vmimage.stages.release.dist import latest_releases, look
from vmimage.util.console import human_bytes
from vmimage.util.settings import Options


def list_all(chosen: Options, *, json: bool) -> None:
    """Print a line for each image, and one for each released file."""
    with session(chosen, json_lines=json) as (console, _store):
        spec = load_spec(chosen.spec)
        found, misfits = look(chosen.dist)
        latest = {(release.image, release.version) for release in latest_releases(chosen.dist)}
        for name, image in spec.images.items():
            mark = " (default)" if name == spec.default else ""
            console.event("image", name=name, summary=image.summary, default=name == spec.default)
            console.say(f"{name}{mark}: {image.summary}")
            for release in (release for release in found if release.image == name):
                mark = "  latest" if (name, release.version) in latest else ""
                console.event("release", image=name, version=release.version, path=str(release.path), latest=bool(mark))
                for kind, file in release.manifest.files.items():
                    console.say(f"  {release.version}  {human_bytes(file.bytes):>9}  {release.file(kind)}{mark}")
        for misfit in misfits:
            console.warn(str(misfit))
