"""`invoke share`: a directory of this host in a running machine, mounted or copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmimage.access.share import make_share, run_share
from vmimage.access.sync.session import run_sync
from vmimage.access.sync.tree import Tree
from vmimage.commands.session import session
from vmimage.commands.where import Where
from vmimage.util.errors import InputError
from vmimage.util.settings import Options


@dataclass(frozen=True)
class Wanted:
    """How a directory is shared.

    Attributes:
        follow: Links that are served as what they lead to: LINK=TARGET.
        exclude: Patterns of what is not copied, as in .gitignore.
    """

    read_only: bool
    notify: bool
    sync: bool
    follow: Sequence[str]
    exclude: Sequence[str]


def share_directory(source: str, target: str | None, where: Where, chosen: Options, wanted: Wanted) -> None:
    """Mount or copy a directory until Ctrl-C."""
    with session(chosen) as (console, _store):
        if wanted.sync and (wanted.read_only or wanted.notify or wanted.follow):
            raise InputError(
                "--sync copies: --read-only, --notify and --follow-link are for a directory that is mounted",
                hint="leave them out; programs in the machine see the events of a copied file without --notify",
            )
        if wanted.exclude and not wanted.sync:
            raise InputError("--exclude is for --sync", hint="a directory that is mounted is there whole")
        share = make_share(source, target, read_only=wanted.read_only, notify=wanted.notify, follow=wanted.follow)
        if wanted.sync:
            run_sync(share, Tree(share.source, wanted.exclude), where.address(), chosen.known_hosts, console)
        else:
            run_share(share, where.address(), chosen.known_hosts, console)
