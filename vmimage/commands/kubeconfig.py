"""`invoke kubeconfig`: a running machine as a context of the user's kubeconfig."""

from __future__ import annotations

import os
from pathlib import Path

from vmimage.access import kubeconfig as merging
from vmimage.access.login import log_in
from vmimage.commands.session import session
from vmimage.commands.where import Where
from vmimage.util.console import Console
from vmimage.util.files import home
from vmimage.util.settings import Options


def add_context(
    context: str,
    where: Where,
    chosen: Options,
    *,
    kubernetes_port: int,
    kubeconfig: str | None,
    use: bool,
    show: bool,
    force: bool,
) -> None:
    """Add a machine, or only print its kubeconfig (`show`).

    Args:
        kubeconfig: The file to change; the one that kubectl writes to when not given.
        use: Make it the current context.
        force: Replace an entry of that name which leads elsewhere.
    """
    with session(chosen) as (console, _store):
        with log_in(where.address(), chosen.known_hosts) as client:
            server = merging.server_url(where.host, kubernetes_port)
            ours = merging.renamed(merging.fetch(client), context, server)
        if show:
            console.say(merging.text_of(ours))
            return
        path = merging.chosen_file(kubeconfig, os.environ, home())
        with merging.locked(path):
            present = merging.read(path)
            _change(path, present, merging.merged(present, ours, force=force, use=use), console)
        console.say(f"try: kubectl --context {context} get nodes")


def remove_context(context: str, chosen: Options, *, kubeconfig: str | None) -> None:
    """Take a machine out again."""
    with session(chosen) as (console, _store):
        path = merging.chosen_file(kubeconfig, os.environ, home())
        with merging.locked(path):
            present = merging.read(path)
            _change(path, present, merging.removed(present, context), console)


def _change(path: Path, present: merging.Config, wanted: merging.Config, console: Console) -> None:
    changed = wanted != present
    backup = merging.write(path, wanted) if changed else None
    before = f" (as it was: {backup})" if backup else ""
    console.say(f"changed: {path}{before}" if changed else f"{path} is as it should be")
