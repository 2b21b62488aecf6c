"""Which ports of the user's computer lead into this machine.

Whoever starts it may tell: `invoke run` does, in a string of SMBIOS that systemd takes for a credential. Only a service
is given that, so one of ours notes it at each start, for all to read. Where nobody tells, or what is told is odd, the
usual ports are shown, with the remark that others may have been chosen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dev_env import Failure, durable
from dev_env.bounds import FORWARDS_BYTES, read_text
from dev_env.names import TCP_RANGE

SSH, HTTP, HTTPS, KUBERNETES = 22, 80, 443, 6443
"""Ports of this machine."""
USUAL: Mapping[int, int] = {SSH: 2222, HTTP: 8080, HTTPS: 8443, KUBERNETES: 6443, **{port: port for port in TCP_RANGE}}
"""Port of this machine -> port on the user's computer, as in the OVA's settings and by default in `invoke run`."""
CREDENTIAL = "vmimage.forwards"
NOTED = Path("/run/dev-env/forwards")
ADDRESS = "203.0.113.254"
"""By which every such machine calls itself."""

PORT = r"[1-9][0-9]{0,4}"
WORD = re.compile(rf"({PORT})(?:(=|-)({PORT}))?", re.ASCII)
MOST_PORT, MOST_PORTS = 65535, 1024


@dataclass(frozen=True)
class Forwards:
    """What leads here.

    Attributes:
        ports: Port of this machine -> port on the user's computer.
        told: Whether whoever started the machine told so; else these are the usual ones.
    """

    ports: Mapping[int, int]
    told: bool


def parse(text: str) -> dict[int, int]:
    """Return port of this machine -> port on the user's computer.

    Args:
        text: `22=2222 80=8081 31000-31004 31006`; a number or a range alone is the same on both.

    Raises:
        Failure: It is anything else, or names a port twice.
    """
    found: dict[int, int] = {}
    for word in text.split(" "):
        match = WORD.fullmatch(word)
        if not match:
            raise Failure(f"no forwarded port: {word!r}")
        first, kind, last = int(match[1]), match[2], int(match[3] or match[1])
        pairs = {first: last} if kind == "=" else {port: port for port in range(first, min(last, MOST_PORT) + 1)}
        if max(first, last) > MOST_PORT or not pairs:
            raise Failure(f"no ports: {word}")
        if pairs.keys() & found.keys() or {*pairs.values()} & {*found.values()}:
            raise Failure(f"a port is named twice: {word}")
        found |= pairs
        if len(found) > MOST_PORTS:
            raise Failure(f"more than {MOST_PORTS} ports")
    return found


def read() -> Forwards:
    """Return what leads here."""
    try:
        return Forwards(parse(read_text(NOTED, FORWARDS_BYTES)), told=True)
    except Failure:
        # `note` has said why, in the journal; users are told that these may not be the right ones.
        return Forwards(USUAL, told=False)


def note(report: Callable[[str], None]) -> None:
    """Note what systemd hands to this service, if anything."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    told = Path(folder, CREDENTIAL) if folder else None
    try:
        if not told or not told.exists():
            raise Failure("nobody told which ports lead here")
        # A file in /etc/credstore, written by hand, ends with a newline.
        text = read_text(told, FORWARDS_BYTES).removesuffix("\n")
        parse(text)
    except Failure as failure:
        NOTED.unlink(missing_ok=True)
        report(f"{failure}; the usual ports are shown")
    else:
        durable.write(NOTED, text)
        report(f"ports that lead here: {text}")


def summary(found: Forwards) -> str:
    """Return one line that names the ports on the user's computer."""
    names = {SSH: "ssh", HTTP: "http", HTTPS: "https", KUBERNETES: "Kubernetes"}
    shown = [f"{found.ports[port]} {name}" for port, name in names.items() if port in found.ports]
    lacking = [name for port, name in names.items() if port not in found.ports]
    shown += [f"no {name}" for name in lacking]
    others = sum(port in found.ports for port in TCP_RANGE)
    shown.append(f"{others} of {len(TCP_RANGE)} for other TCP")
    return f"ports on your computer: {', '.join(shown)}{'' if found.told else ' (as usual; yours may differ)'}"


def notes(found: Forwards, lacking: Collection[int]) -> Iterator[str]:
    """Yield what a user has to know of the addresses that were shown.

    Args:
        lacking: Ports of this machine, of services, to which nothing leads.
    """
    if not found.told:
        yield (
            "These are the usual ports. Whoever started this machine did not tell it which ones lead here: "
            "if others were chosen, in the settings of VirtualBox for example, those count."
        )
    if lacking:
        one = min(lacking)
        ssh = found.ports.get(SSH, "PORT")
        yield (
            f"Not forwarded to this machine: {', '.join(map(str, sorted(lacking)))}. Something else on your computer "
            "used that number when the machine was started, perhaps another machine. End that and start this machine "
            f"again, or, on your computer, for any free number N: ssh -N -p {ssh} -L N:{ADDRESS}:{one} dev@localhost"
        )
