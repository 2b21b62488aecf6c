"""`invoke fetch`: the pinned files of an image, verified."""

from __future__ import annotations

from pathlib import Path

from vmimage import pipeline
from vmimage.cache.store import Store
from vmimage.commands.session import session
from vmimage.plan import Plan
from vmimage.stages.fetch import fetch
from vmimage.util.console import Console
from vmimage.util.settings import Options


def fetch_pins(image: str | None, chosen: Options, *, json: bool) -> None:
    """Get the files, and print where they are; of an archive, also what in it is the file."""
    with session(chosen, json_lines=json, log="fetch") as (console, store):
        store.sweep()
        made = pipeline.plan_image(image, chosen)
        found = fetched(made, store, console)
        for file in made.files:
            path = found[file.name]
            console.event("file", name=file.name, path=str(path), members=file.members)
            console.say(f"{file.name}: {' -> '.join([str(path), *file.members])}")


def fetched(plan: Plan, store: Store, console: Console) -> dict[str, Path]:
    """Get the pinned files of an image; returns pin -> path."""
    with console.stage("fetch", f"{len(plan.files)} pinned files") as step:
        return fetch(plan.files, store, step)
