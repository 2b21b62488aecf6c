"""`invoke kubeconfig`: a running machine as a context of the user's kubeconfig."""

from __future__ import annotations

import os
from pathlib import Path

from vmimage.access.kubeconfig import Config, fetch, renamed, require_name, server_url
from vmimage.access.kubeconfig_entries import excerpt, left, merged, removed
from vmimage.access.kubeconfig_file import chosen_file, locked, read, text_of, write
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
    kubeconfig: str | None,
    use: bool,
    show: bool,
    force: bool,
) -> None:
    """Add a machine, or only print its kubeconfig (`show`).

    Args:
        kubeconfig: The file to change; the one that kubectl writes to when not given.
        use: Make it the current context.
        force: Replace entries of that name that are not of this machine.
    """
    with session(chosen) as (console, _store):
        require_name(context)
        server = server_url(where.host, where.kubernetes_port)
        with log_in(where.address(), chosen.known_hosts, console.warn) as client:
            ours = renamed(fetch(client), context, server)
        if show:
            console.say(text_of(ours))
            return
        path = chosen_file(kubeconfig, os.environ, home())
        with locked(path):
            present = read(path)
            _change(path, context, present, merged(present, ours, force=force, use=use), console)
        console.say(f"try: kubectl --context {context} get nodes")


def remove_context(context: str, where: Where, chosen: Options, *, kubeconfig: str | None, force: bool) -> None:
    """Take a machine out again.

    Args:
        force: Also entries of that name that are not of this machine.
    """
    with session(chosen) as (console, _store):
        path = chosen_file(kubeconfig, os.environ, home())
        with locked(path):
            present = read(path)
            wanted = removed(present, context, server_url(where.host, where.kubernetes_port), force=force)
            _change(path, context, present, wanted, console)
        for entry in left(wanted, context):
            console.say(f"  the {entry} stays: it is not of this machine, or other contexts need it")


def _change(path: Path, context: str, present: Config, wanted: Config, console: Console) -> None:
    # As texts: what their user wrote may hold one thing many times, and comparing such values has no end.
    changed = text_of(excerpt(wanted, context)) != text_of(excerpt(present, context))
    backup = write(path, wanted) if changed else None
    before = f" (as it was: {backup})" if backup else ""
    console.say(f"changed: {path}{before}" if changed else f"{path} is as it should be")
