"""The cache of the user's options, opened."""

from __future__ import annotations

from datetime import datetime, timedelta

from vmimage.cache.ours import is_entry
from vmimage.cache.store import Store
from vmimage.util.files import listed
from vmimage.util.settings import Options

KEPT_LOGS = 20


def open_store(options: Options) -> Store:
    """Open the cache, and forget the oldest logs."""
    store = Store(options.cache)
    logs = [path.name for path in listed(store.root / "logs") if is_entry("logs", path.name)]
    # Names are times. Those of a clock that was ahead count as old: they would stay, and today's would go.
    ahead = f"{datetime.now().astimezone() + timedelta(days=1):%Y%m%d-%H%M%S}"
    logs.sort(key=lambda name: (name < ahead, name))
    for old in logs[: -KEPT_LOGS or None]:
        store.remove("logs", old)
    return store
