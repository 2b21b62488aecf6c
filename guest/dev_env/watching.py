"""Names and ports follow their services: a service of the system runs this."""

from __future__ import annotations

import threading
import time
import traceback

from dev_env import Failure
from dev_env.api import Api
from dev_env.bounds import API_SECONDS, WATCH_SECONDS
from dev_env.console import answer, say
from dev_env.names import reconcile

SETTLE_SECONDS = 0.3
RETRY_SECONDS = 2.0
"""Doubled as long as something is refused."""
RESYNC_SECONDS = 60.0
QUIET_SECONDS = 2 * (WATCH_SECONDS + API_SECONDS) + RESYNC_SECONDS
"""A watch that lives gives a sign within this time."""


class Watcher:
    """Watches one kind of objects in a thread of its own, and notes that it lives."""

    def __init__(self, kind: str, changed: threading.Event) -> None:
        self.kind = kind
        self._changed, self._seen = changed, time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"watch {kind}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def require_alive(self) -> None:
        """Say so when it is dead, or has been silent for too long.

        Raises:
            RuntimeError: The service is to be ended; the system starts it again.
        """
        silent = time.monotonic() - self._seen
        if not self._thread.is_alive() or silent > QUIET_SECONDS:
            raise RuntimeError(f"nobody watches each {self.kind} any more: silent for {silent:.0f} s")

    def _run(self) -> None:
        pause, said = RETRY_SECONDS, ""
        while True:
            self._seen = time.monotonic()
            try:
                for _ in Api().changes(self.kind):
                    self._seen = time.monotonic()
                    pause, said = RETRY_SECONDS, ""
                    self._changed.set()
                # The cluster ended it, as it does after a time; what changes meanwhile is seen when the next begins.
                time.sleep(SETTLE_SECONDS)
                continue
            except Failure as error:
                # Not there before it has started; what was missed is seen when the next watch begins.
                text = str(error)
            except Exception:  # noqa: BLE001 - whatever it is, it must be seen, and not be the end of the thread
                text = traceback.format_exc()
            if text != said:
                said = text
                say(f"watching each {self.kind}: {text}")
            time.sleep(pause)
            pause = min(2 * pause, RESYNC_SECONDS)


def watch() -> None:
    """Keep names and ports as desired, until killed: at every change of a service or an Ingress, and now and then.

    Raises:
        RuntimeError: A watch has died.
    """
    changed = threading.Event()
    watchers = [Watcher(kind, changed) for kind in ("Service", "Ingress")]
    for each in watchers:
        each.start()
    pause = RETRY_SECONDS
    while True:
        changed.wait(timeout=RESYNC_SECONDS)
        # More often come together.
        time.sleep(SETTLE_SECONDS)
        changed.clear()
        for each in watchers:
            each.require_alive()
        try:
            for line in reconcile(Api()):
                answer(line)
            pause = RETRY_SECONDS
            continue
        except Failure as error:
            text = str(error)
        except Exception:  # noqa: BLE001 - an object that nobody foresaw is told, and does not take all names away
            text = traceback.format_exc()
        say(f"{text}\ntrying again in {pause:.0f} s")
        later = threading.Timer(pause, changed.set)
        later.daemon = True
        later.start()
        pause = min(2 * pause, RESYNC_SECONDS)
