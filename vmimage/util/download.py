"""Downloads that go on where an earlier attempt stopped."""

from __future__ import annotations

from pathlib import Path

import requests
import urllib3

from vmimage.util.location import Progress, UnavailableError
from vmimage.util.settings import Bounds
from vmimage.util.transfer import Watch, attempt, plain_words

ATTEMPTS = 3
BACKOFF_SECONDS = 0.5
# Whoever has no address or the wrong certificate has it in a second, too.
POINTLESS = ("resolve", "certificate")


def download(url: str, to: Path, progress: Progress, bounds: Bounds | None = None) -> None:
    """Download a URL, going on where an earlier attempt stopped.

    Raises:
        UnavailableError: After all attempts, or at once where another attempt cannot help.
    """
    bounds = bounds or Bounds()
    why = ""
    with Watch(bounds) as watch:
        for number in range(ATTEMPTS):
            if number:
                bounds.stop.wait(BACKOFF_SECONDS * 2 ** (number - 1))
            try:
                why = attempt(url, to, watch, progress)
            except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
                why = plain_words(error, url)
            watch.check()
            if not why:
                return
            if any(mark in why for mark in POINTLESS):
                break
    raise UnavailableError(why)
