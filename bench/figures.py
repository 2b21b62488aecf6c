"""What `invoke bench build` measured, as figures: medians, ratios, goals, a table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.floor import FloorPart
from vmimage.util.console import read_event
from vmimage.util.errors import BuildError
from vmimage.util.run import tail

COLD, NO_CHANGE, COMPONENT, LAST_STEP = "cold", "no change", "one component", "last step"
GOALS = {COLD: 0.35, NO_CHANGE: 0.01, COMPONENT: 0.25, LAST_STEP: 0.20}
"""At most so much of the peer's seconds."""
VERIFY_GOAL = 1.2
"""Verify takes at most so much of the seconds of its machines booted one after the other."""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """One of our builds: seconds of the whole command, and of each stage by its own events."""

    seconds: float
    stages: Mapping[str, float]
    release: Path

    @property
    def without_verify(self) -> float:
        """Seconds of what the peer does, too: it tests nothing."""
        return self.seconds - self.stages.get("verify", 0.0)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round measured, in seconds: builds of ours by scenario, plain boots by machine, the peer's by start."""

    ours: Mapping[str, Ours]
    boots: Mapping[str, float]
    peers: Mapping[str, float]


def read_build(output: str, seconds: float) -> Ours:
    """Read what `invoke build-image --json` printed; pure.

    Raises:
        BuildError: It tells no result.
    """
    events = [event for line in output.splitlines() if (event := read_event(line))]
    result = next((event for event in events if event["event"] == "result"), None)
    if not result:
        raise BuildError(f"a build told no result:{tail(output)}")
    stages = {event["stage"]: float(event["seconds"]) for event in events if event["event"] == "end"}
    return Ours(seconds=seconds, stages=stages, release=Path(result["release"]))


def report(rounds: Sequence[Round], parts: Sequence[FloorPart] = ()) -> dict[str, Any]:
    """Return medians, ratios, goals and the floor, as they are written to JSON; pure."""
    theirs = {name: median(one.peers[name] for one in rounds) for name in rounds[0].peers}
    scenarios: list[dict[str, Any]] = []
    for name, goal in GOALS.items():
        ours = [one.ours[name] for one in rounds]
        seconds = median(build.seconds for build in ours)
        without_verify = median(build.without_verify for build in ours)
        scenarios.append(
            {
                "scenario": name,
                "seconds": seconds,
                "without_verify": without_verify,
                "goal": goal,
                "peers": {name: _compared(seconds, without_verify, goal, peer) for name, peer in theirs.items()},
            }
        )
    cold = [one.ours[COLD] for one in rounds]
    stages = {name: median(build.stages[name] for build in cold) for name in cold[0].stages}
    booted = {name: median(one.boots[name] for one in rounds) for name in rounds[0].boots}
    of_boots = median(one.ours[COLD].stages["verify"] / sum(one.boots.values()) for one in rounds)
    least = sum(part.seconds for part in parts)
    return {
        "runs": len(rounds),
        "scenarios": scenarios,
        "stages": stages,
        "verify": {
            "seconds": stages["verify"],
            "boots": booted,
            "ratio": of_boots,
            "goal": VERIFY_GOAL,
            "met": of_boots <= VERIFY_GOAL,
        },
        "floor": {
            "parts": [{**asdict(part), "seconds": part.seconds} for part in parts],
            "seconds": least,
            "cold_ratio": scenarios[0]["seconds"] / least if least else None,
        },
        "rounds": [asdict(one) for one in rounds],
    }


def _compared(seconds: float, without_verify: float, goal: float, peer: float) -> dict[str, Any]:
    """Compare a build with one of the peer's: the whole command, and what of it the peer does, too."""
    whole, same = seconds / peer, without_verify / peer
    return {
        "seconds": peer,
        "ratio": whole,
        "met": whole <= goal,
        "without_verify_ratio": same,
        "without_verify_met": same <= goal,
    }


def table(found: Mapping[str, Any]) -> str:
    """Return a report for people; pure."""
    lines = [f"medians of {found['runs']}; plain Packer keeps nothing, so its one full build stands in all four lines"]
    for name, peer in found["scenarios"][0]["peers"].items():
        lines += [
            "",
            f"against plain Packer, {name}: {peer['seconds']:.1f} s",
            f"{'':<14} {'ours':>9} {'ratio':>7} {'':<6}   {'no verify':>9} {'ratio':>7} {'':<6} {'goal':>6}",
        ]
        for row in found["scenarios"]:
            one = row["peers"][name]
            lines.append(
                f"{row['scenario']:<14} {row['seconds']:7.1f} s {one['ratio']:7.3f} {_verdict(one['met']):<6}   "
                f"{row['without_verify']:7.1f} s {one['without_verify_ratio']:7.3f} "
                f"{_verdict(one['without_verify_met']):<6} {row['goal']:6.2f}"
            )
    verify = found["verify"]
    machines = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in verify["boots"].items())
    lines += [
        "",
        f"verify {verify['seconds']:.1f} s, boots one after the other: {machines}",
        f"{'verify/boots':<14} {verify['ratio']:47.3f} {verify['goal']:6.2f} {_verdict(verify['met'])}",
        "",
        "where a cold build's time goes",
    ]
    whole = found["scenarios"][0]["seconds"]
    rest = whole - sum(found["stages"].values())
    for name, seconds in {**found["stages"], "start and end": rest}.items():
        lines.append(f"{name:<14} {seconds:7.1f} s {seconds / whole:6.1%}")
    if found["floor"]["parts"]:
        lines += ["", "the floor: bytes that must be moved, at the speed measured in this run"]
        for part in found["floor"]["parts"]:
            size, speed = part["bytes"] / 1e6, part["speed"] / 1e6
            lines.append(f"{part['what']:<42} {size:7.0f} MB at {speed:6.0f} MB/s {part['seconds']:6.1f} s")
        lines.append(f"{'sum':<42} {found['floor']['seconds']:29.1f} s")
        lines.append(f"{'a cold build is this many times the floor':<42} {found['floor']['cold_ratio']:29.1f}")
    return "\n".join(lines)


def _verdict(met: bool) -> str:
    return "met" if met else "missed"
