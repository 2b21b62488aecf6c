"""Asks upstream. There is no digest to compare its answers with: so https has to prove who answers.

Beyond that, answers are bounded as every download is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vmimage.stages.fetch import reason_of
from vmimage.util.download import download
from vmimage.util.errors import InputError
from vmimage.util.location import UnavailableError
from vmimage.util.masking import masked
from vmimage.util.settings import Bounds
from vmimage.util.urls import is_safe

log = logging.getLogger(__name__)

MOST_BYTES = 1 << 20
"""Of a list of channels or checksums; those of k3s have some 10 KiB."""


class Upstream:
    """Answers of upstream; each URL is asked once.

    Args:
        instead: Pairs of URLs: what begins with the first is asked at the second.
        work: Folder for answers that are on their way.
    """

    def __init__(self, instead: Sequence[tuple[str, str]], work: Path, bounds: Bounds) -> None:
        self._instead = instead
        self._work = work
        self._bounds = replace(bounds, most_bytes=MOST_BYTES, believed=True)
        self._answers: dict[str, str | UnavailableError] = {}

    def text(self, url: str) -> str:
        """Return what a URL answers.

        Raises:
            UnavailableError: It does not, or with what is no text; the message begins with the URL.
        """
        url = self.instead_of(url)
        if url not in self._answers:
            try:
                self._answers[url] = self._asked(url)
            except UnavailableError as error:
                self._answers[url] = told(url, error)
        found = self._answers[url]
        if isinstance(found, UnavailableError):
            raise found
        return found

    def instead_of(self, url: str) -> str:
        """Return where a URL is asked."""
        for old, new in self._instead:
            rest = url.removeprefix(old)
            if rest != url and (old.endswith("/") or not rest or rest[0] in "/?"):
                return new + rest
        return url

    def _asked(self, url: str) -> str:
        if not is_safe(url):
            raise UnavailableError("is refused: only https proves who answers (http only to this host itself)")
        to = self._work / "answer"
        try:
            download(url, to, lambda *_: None, self._bounds)
            return to.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise UnavailableError("answers what is no text") from None
        except Exception as error:  # whatever upstream answers, other pins have other upstreams
            log.debug("%s", masked(url), exc_info=True)
            raise UnavailableError(reason_of(error)) from error
        finally:
            to.unlink(missing_ok=True)


def told(url: str, error: UnavailableError) -> UnavailableError:
    """Return an error that begins with the URL."""
    return UnavailableError(f"{masked(url)}: {error}")


def instead_of(given: Sequence[str]) -> list[tuple[str, str]]:
    """Read `OLD=NEW`, the starts of URLs.

    Raises:
        InputError: It is something else.
    """
    pairs = []
    for text in given:
        old, sign, new = text.partition("=")
        if not sign or not all(url.startswith(("https://", "http://")) for url in (old, new)):
            hint = "for example --upstream https://dl.k8s.io/=https://mirror.example.com/k8s/"
            raise InputError(f"--upstream {text}: not OLD=NEW, two starts of URLs", hint=hint)
        if not is_safe(new):
            raise InputError(
                f"--upstream {text}: http proves nothing of who answers",
                hint="use https; a certificate of your company is trusted if this host trusts it (docs/building.md)",
            )
        pairs.append((old, new))
    return pairs
