"""Which pins have newer versions, which of them may be taken, and their SHA-256."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vmimage.commands.update.answers import published_version, shown
from vmimage.commands.update.ask import Upstream, told
from vmimage.commands.update.digests import Digests, digests_of
from vmimage.commands.update.version import Version, minors_apart, version_of
from vmimage.spec.model import Spec
from vmimage.spec.pins import Arch
from vmimage.util.location import UnavailableError

MOST_SKEW = 1
"""Minor versions that kubectl may be away from its cluster: https://kubernetes.io/releases/version-skew-policy/#kubectl"""

Complete = Callable[[str, str, Digests], Digests]
State = Literal["newer", "current", "older", "held", "failed"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found for a pin.

    Attributes:
        state: `newer` is to be written; `current` needs nothing; `older` is all that upstream has; `held` would not go
            together with another pin; `failed` could not be looked up.
        version: What upstream has, if it is known.
        why: What is behind the state, for people.
    """

    pin: str
    pinned: str
    state: State
    version: str = ""
    why: str = ""
    digests: Digests = field(default_factory=Digests)


class Search:
    """Looks up some pins.

    Args:
        told: Pin -> version that the user named: taken as it is, also an older one or a pre-release.
        complete: Computes what upstream does not publish; takes a pin's name, its new version and what is published.
    """

    def __init__(self, spec: Spec, upstream: Upstream, told: Mapping[str, str], complete: Complete) -> None:
        self._pins = spec.pins
        self._complete = complete
        self._upstream = upstream
        self._told = told
        self._found: dict[str, Found] = {}

    def look_up(self, names: Iterable[str], now: Callable[[str], None]) -> list[Found]:
        """Look up pins, in the order of images.yaml, and those that have to change together with them.

        Args:
            now: Is told which pin is looked up.
        """
        leaders = {self._leader(name) for name in names}
        # Those that others stay close to come first.
        order = sorted((name for name in self._pins if name in leaders), key=lambda name: bool(self._skew(name)))
        for name in order:
            now(name)
            self._look_up(name)
        self._hold_apart()
        return [self._found[name] for name in self._pins if name in self._found]

    def _leader(self, name: str) -> str:
        upstream = self._pins[name].upstream
        return upstream.follows if upstream and upstream.follows else name

    def _skew(self, name: str) -> str | None:
        upstream = self._pins[name].upstream
        return upstream.skew if upstream else None

    def _group(self, leader: str) -> list[str]:
        return [name for name in self._pins if self._leader(name) == leader]

    def _planned(self, name: str) -> Version | None:
        """Return the version that a pin will have, as far as that is known."""
        found = self._found.get(name)
        return version_of(found.version if found and found.state == "newer" else self._pins[name].version)

    def _look_up(self, leader: str) -> None:
        """Find a version, and its digests for all that has to be of this version: all of it or nothing."""
        try:
            version, note = self._wanted(leader)
            state, why = self._compared(leader, version)
            digests = {}
            if state == "newer":
                digests = {name: self._digests(name, version.text) for name in self._group(leader)}
        except UnavailableError as error:
            for name in self._group(leader):
                self._found[name] = Found(pin=name, pinned=self._pins[name].version, state="failed", why=str(error))
            return
        for name in self._group(leader):
            self._found[name] = Found(
                pin=name,
                pinned=self._pins[name].version,
                state=state,
                version=version.text,
                why=why or note,
                digests=digests.get(name, Digests()),
            )

    def _wanted(self, name: str) -> tuple[Version, str]:
        """Return the version that a pin should have, and why it is not the newest.

        Raises:
            UnavailableError: Upstream does not say.
        """
        pin = self._pins[name]
        if not pin.upstream or not pin.upstream.version:
            raise UnavailableError(f"pins.{name} has no `upstream:` in images.yaml (docs/building.md: newer pins)")
        if name in self._told:
            version = version_of(self._told[name])
            if not version:
                raise UnavailableError(f"{shown(self._told[name])} is no version, such as v1.36.4")
            return version, ""
        newest = self._published(name, pin.upstream.version, pin.upstream.channel)
        other = self._planned(pin.upstream.skew) if pin.upstream.skew else None
        if other and minors_apart(newest, other) > MOST_SKEW and newest.order > other.order and pin.upstream.minor:
            # Not the newest, but the newest that goes together with the other one.
            major, minor = other.minor
            url = pin.upstream.minor.format(minor=f"{major}.{minor + MOST_SKEW}")
            return self._published(
                name, url, None
            ), f"the newest is {newest.text}, too far from {other.text} of " + str(pin.upstream.skew)
        return newest, ""

    def _published(self, name: str, url: str, channel: str | None) -> Version:
        text = self._upstream.text(url)
        try:
            version = published_version(text, channel)
            if version.pre:
                raise UnavailableError(
                    f"answers {version.text}, a pre-release; `invoke update {name}={version.text}` takes it"
                )
        except UnavailableError as error:
            raise told(self._upstream.instead_of(url), error) from None
        # Tags of GitHub have a v that a pin may do without.
        plain = version.text.removeprefix("v")
        prefix = "v" if self._pins[name].version.startswith("v") else ""
        return replace(version, text=prefix + plain)

    def _compared(self, name: str, version: Version) -> tuple[State, str]:
        pin = self._pins[name]
        pinned = version_of(pin.version)
        if not pinned:
            raise UnavailableError(f"{pin.version}, which is pinned, cannot be compared with {version.text}")
        missing = [arch for each in self._group(name) for arch in self._missing(each)]
        if pin.version == version.text or pinned.order == version.order:
            if missing:
                return "newer", f"the same version, with SHA-256 for {', '.join(dict.fromkeys(missing))}"
            return "current", ""
        if name in self._told:
            return "newer", "as you said"
        if version.order < pinned.order:
            return "older", f"upstream has {version.text}, which is older"
        skew = self._skew(name)
        other = self._planned(skew) if skew else None
        if other and minors_apart(version, other) > MOST_SKEW:
            return "held", _apart(name, version, str(skew), other)
        return "newer", ""

    def _digests(self, name: str, version: str) -> Digests:
        return self._complete(name, version, digests_of(name, self._pins[name], version, self._upstream))

    def _missing(self, name: str) -> list[Arch]:
        pin = self._pins[name]
        return [arch for arch in (pin.upstream.arch if pin.upstream else ()) if arch not in pin.arches]

    def _hold_apart(self) -> None:
        """Hold what would lead away from a pin that stays as it is: k3s, when kubectl is not looked up with it."""
        for name in self._pins:
            skew = self._skew(name)
            other = self._found.get(skew) if skew else None
            if not other or other.state != "newer" or {name, other.pin} & set(self._told):
                continue
            mine, its = self._planned(name), self._planned(other.pin)
            if mine and its and minors_apart(mine, its) > MOST_SKEW:
                why = _apart(other.pin, its, name, mine)
                for each in self._group(other.pin):
                    self._found[each] = replace(self._found[each], state="held", why=why, digests=Digests())
                if name in self._found:
                    self._look_up(name)


def _apart(name: str, version: Version, other: str, its: Version) -> str:
    return (
        f"{name} {version.text} would be more than {MOST_SKEW} minor version away from {other} {its.text}; "
        f"update both (invoke update {name} {other}), or `invoke update {name}={version.text}`"
    )
