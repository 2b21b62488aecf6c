"""`invoke share`: a directory of this host in a running machine."""

from __future__ import annotations

from collections.abc import Sequence

from vmimage.access.share import make_share, run_share
from vmimage.commands.session import session
from vmimage.commands.where import Where
from vmimage.util.settings import Options


def share_directory(
    source: str,
    target: str | None,
    where: Where,
    chosen: Options,
    *,
    read_only: bool,
    notify: bool,
    follow: Sequence[str] = (),
) -> None:
    """Mount a directory until Ctrl-C.

    Args:
        follow: Links that are served as what they lead to: LINK=TARGET.
    """
    with session(chosen) as (console, _store):
        run_share(
            make_share(source, target, read_only=read_only, notify=notify, follow=follow),
            where.address(),
            chosen.known_hosts,
            console,
        )
