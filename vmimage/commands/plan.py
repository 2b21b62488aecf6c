"""`invoke plan`: what a build would do, and why."""

from __future__ import annotations

from vmimage import pipeline
from vmimage.commands.session import session
from vmimage.stages.release.dist import tell_misfits
from vmimage.stages.release.mark import require_ours
from vmimage.util.settings import Options


def show_plan(image: str | None, chosen: Options, *, json: bool) -> None:
    """Print a line for each stage and file."""
    with session(chosen, json_lines=json) as (console, store):
        made = pipeline.plan_image(image, chosen)
        require_ours(chosen.dist)
        tell_misfits(chosen.dist, console)
        for stage, state, why in pipeline.planned(made, chosen, store):
            console.event("plan", image=made.name, stage=stage, state=state, why=why)
            console.say(f"{stage:<8} {state:<7} {why}")
