"""`invoke bench`: our work against others, side by side."""

from __future__ import annotations

from pathlib import Path

from bench.build import DEFAULT_IMAGE, bench_build
from bench.export import bench_export
from vmimage import pipeline
from vmimage.commands.session import session
from vmimage.stages.base import BaseStage
from vmimage.stages.export import ExportStage
from vmimage.util.errors import InputError
from vmimage.util.settings import Options


def bench(what: str, image: str | None, chosen: Options, *, runs: int, output: Path | None, json: bool) -> None:
    """Run a benchmark: `export` or `build`.

    Args:
        image: For `build`, toolbox when not given.
        output: Of `build`: takes all that was measured, as JSON.

    Raises:
        InputError: There is no such benchmark.
    """
    with session(chosen, json_lines=json, log=f"bench-{what}" if what == "build" else "") as (console, store):
        if what not in ("export", "build"):
            raise InputError(f"there is no benchmark {what}", hint="export or build")
        plan = pipeline.plan_image(image or (DEFAULT_IMAGE if what == "build" else None), chosen)
        stages = pipeline.stages_of(plan, context := pipeline.build_context(chosen, store))
        if what == "export":
            bench_export(pipeline.the_stage(stages, ExportStage), store, console)
        else:
            base = pipeline.the_stage(stages, BaseStage)
            bench_build(plan, base, context.accelerator(), console, runs=runs, output=output)
