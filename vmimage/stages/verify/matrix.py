"""Which exported file is booted in which machine; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmimage.formats.all import BY_NAME
from vmimage.util.firmware import FIRMWARES, FirmwareName


@dataclass(frozen=True, kw_only=True)
class Boot:
    """One file in one machine.

    Attributes:
        again: The same machine once more, so that there are two clones to compare.
    """

    kind: str
    profile: str
    firmware: FirmwareName
    again: bool = False

    @property
    def name(self) -> str:
        """As it stands in verdicts and on folders: "ova-virtualbox-bios"."""
        return f"{self.kind}-{self.profile}-{self.firmware}{'-again' * self.again}"


def boots(kinds: Sequence[str], *, full: bool) -> tuple[Boot, ...]:
    """Return what is booted for these formats.

    Args:
        full: Every machine that a format is for. Otherwise each file in its first machine, and, if no file was booted
            with a firmware in that way, one more machine with it. Two at least: clones are compared.
    """
    chosen = [Boot(kind=kind, profile=profile, firmware=firmware) for kind in kinds
              for profile, firmware in (BY_NAME[kind].machines if full else BY_NAME[kind].machines[:1])]  # fmt: skip
    for wanted in FIRMWARES:
        if all(boot.firmware != wanted for boot in chosen):
            more = [Boot(kind=kind, profile=profile, firmware=firmware) for kind in kinds
                    for profile, firmware in BY_NAME[kind].machines if firmware == wanted]  # fmt: skip
            chosen += more[:1]
    if len(chosen) == 1:
        chosen.append(replace(chosen[0], again=True))
    return tuple(chosen)
