"""`invoke build-image`: build, verify and release an image, or all of them."""

from __future__ import annotations

from dataclasses import replace

from vmimage import pipeline
from vmimage.commands.build_all import build_all
from vmimage.commands.session import session
from vmimage.commands.sign import require_key, sign_built
from vmimage.spec.load import load_spec
from vmimage.util.errors import InputError
from vmimage.util.settings import Options


def build(image: str | None, chosen: Options, *, matrix: str, json: bool) -> None:
    """Build one image.

    Args:
        image: The default one when not given.
        matrix: `default` or `full`.
        json: Write JSON lines.
    """
    with session(chosen, json_lines=json, log="build-image") as (console, store):
        chosen = replace(chosen, full_matrix=full_matrix(matrix))
        require_key(chosen, console)
        done = pipeline.build_image(image, chosen, store, console)
        if chosen.sign:
            sign_built(done.path, chosen.sign, console)
        console.event("result", release=str(done.path), version=done.version, files=done.files)
        console.say(f"\nreleased: {done.path}\nstart it: invoke run {done.image}\nlog: {console.log_dir}/run.log")


def build_every(image: str | None, chosen: Options, *, jobs: int, matrix: str, json: bool) -> None:
    """Build every image of images.yaml, `jobs` of them at the same time."""
    with session(chosen, json_lines=json, log="build-all") as (console, _store):
        chosen = replace(chosen, full_matrix=full_matrix(matrix))
        if image or jobs < 1:
            raise InputError("--all goes with no image, and --jobs with 1 or more", hint="invoke build-image --all")
        require_key(chosen, console)
        build_all(list(load_spec(chosen.spec).images), jobs, chosen.arguments, console, chosen.environment)


def full_matrix(matrix: str) -> bool:
    """Read `--matrix`.

    Raises:
        InputError: It is neither.
    """
    if matrix not in ("default", "full"):
        raise InputError(f"--matrix {matrix}: unknown", hint="default or full")
    return matrix == "full"
