"""Sessions of tests/image: one pytest each, on a disk or in a machine, and what came of it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from vmimage import PROJECT
from vmimage.util.errors import VerifyError
from vmimage.util.files import written_beside
from vmimage.util.json_file import read_json
from vmimage.util.run import run, tail

IMAGE_TESTS = PROJECT / "tests" / "image"
# An emulated machine with a cluster in it, beside another one, takes its time.
TEST_SECONDS = 5400.0
PACE = "seconds-of-checks.json"
"""In the cache: how long each file of checks took when it ran last."""
MOST_PACE_BYTES = 1 << 20
MOST_JUNIT_BYTES = 64 << 20
MOST_LINE = 1000
"""Characters of a line of a failure that are shown."""
DISK_TESTS = ("test_hygiene.py",)
MACHINE_TESTS = ("test_machine.py",)


@dataclass(kw_only=True)
class Check:
    """The outcome of one session.

    Attributes:
        name: `disk`, or the file, profile and firmware of a machine.
        failures: One text each: the test's name and what it said.
    """

    name: str
    seconds_to_ssh: float | None = None
    tests: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """A session without tests proves nothing."""
        return self.tests > 0 and not self.failures


def check_files(facts: Mapping[str, object], folder: Path) -> list[str]:
    """Return the files of tests/image that run inside machines: test_COMPONENT.py, and test_COMPONENT_*.py if any.

    Raises:
        VerifyError: A component has none: it is another project's, or one of an earlier time.
    """
    components = facts.get("components", [])
    assert isinstance(components, Sequence)  # noqa: S101 - release.json, checked when it was read
    files = list(MACHINE_TESTS)
    for component in components:
        if not (folder / f"test_{component}.py").is_file():
            raise VerifyError(
                f"the image has the component {component}, for which there is no tests/image/test_{component}.py",
                hint="verify it with the project that built it",
            )
        more = sorted(path.name for path in folder.glob(f"test_{component}_*.py"))
        files += [f"test_{component}.py", *more]
    return files


def dealt_tests(facts: Mapping[str, object], machine: int, machines: int, seconds: Mapping[str, float]) -> list[str]:
    """Return the files to run in one of some machines: those about machines in each, any other in one of them.

    The longest is dealt first, each to the machine that has least so far.

    Args:
        seconds: File -> how long it took before; one that is not there counts by its size.
    """
    files = [file for file in check_files(facts, IMAGE_TESTS) if file not in MACHINE_TESTS]
    sizes = {file: (IMAGE_TESTS / file).stat().st_size for file in files}
    known = {file: seconds[file] for file in files if file in seconds}
    pace = sum(known.values()) / sum(sizes[file] for file in known) if known else 1.0
    weights = {file: known.get(file, size * pace) for file, size in sizes.items()}
    hands: list[list[str]] = [[] for _ in range(machines)]
    for file in sorted(files, key=weights.__getitem__, reverse=True):
        min(hands, key=lambda hand: sum(weights[name] for name in hand)).append(file)
    return [*MACHINE_TESTS, *(file for file in files if file in hands[machine])]


def known_seconds(path: Path) -> dict[str, float]:
    """Return how long each file of checks took when it ran last; nothing where that is not known."""
    with contextlib.suppress(OSError, ValueError):
        found = read_json(path, MOST_PACE_BYTES)
        if isinstance(found, dict) and all(isinstance(each, float) for each in found.values()):
            return found
    return {}


def note_seconds(path: Path, work: Path) -> None:
    """Note how long each file of checks took, by the JUnit files of all sessions."""
    seconds: dict[str, float] = {}
    for junit in sorted(work.glob("*/junit.xml")):
        if junit.stat().st_size > MOST_JUNIT_BYTES:
            continue
        for case in ET.parse(junit).getroot().iter("testcase"):  # noqa: S314 - our own pytest wrote it
            file = f"{case.get('classname', '').rpartition('.')[2]}.py"
            # What is no time is left out: one NaN would make the whole file unreadable.
            with contextlib.suppress(ValueError):
                took = float(case.get("time", 0))
                seconds[file] = seconds.get(file, 0.0) + (took if 0 <= took <= TEST_SECONDS else 0.0)
    # Without it, the next run deals by size.
    with contextlib.suppress(OSError), written_beside(path) as beside:
        beside.write_text(json.dumps(known_seconds(path) | seconds))


def run_tests(
    check: Check, files: Sequence[str], context: Mapping[str, object], hosts: Sequence[str], folder: Path
) -> None:
    """Run files of tests/image in a pytest of their own, and add what it reports to `check`.

    Args:
        context: What `tests/image/conftest.py` hands to the tests; leave it in `folder` with the JUnit file.
        hosts: Options that name the machine to testinfra; none for tests on a disk.
    """
    junit, context_file = folder / "junit.xml", folder / "context.json"
    context_file.write_text(json.dumps(context, indent=2))
    argv = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    argv += ["-o", "filterwarnings=default", "-o", f"junit_suite_name={check.name}"]
    argv += [f"--context={context_file}", f"--junitxml={junit}", *hosts]
    paths = [str(IMAGE_TESTS / file) for file in files]
    done = run([*argv, *paths], cwd=PROJECT, timeout=TEST_SECONDS, check=False)
    read_junit(junit, check)
    if done.returncode and not check.failures:
        check.failures.append(f"pytest ended with status {done.returncode}:{tail(done.output)}")


def read_junit(path: Path, check: Check) -> None:
    """Read counts and failures of a JUnit file that pytest wrote; no file means that nothing ran.

    Guests have a say in it: what their commands print stands there.
    """
    if not path.exists():
        return
    if path.stat().st_size > MOST_JUNIT_BYTES:
        check.failures.append(f"its tests say more than {MOST_JUNIT_BYTES >> 20} MiB: {path.name} is not read")
        return
    try:
        root = ET.parse(path).getroot()  # noqa: S314 - our own pytest wrote it
    except ET.ParseError as error:
        check.failures.append(f"what its tests report cannot be read: {error}")
        return
    for case in root.iter("testcase"):
        check.tests += 1
        check.skipped += case.find("skipped") is not None
        for kind in ("failure", "error"):
            problem = case.find(kind)
            if problem is not None:
                text = (problem.text or problem.get("message") or "").strip()
                said = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()
                shown = "\n".join(line[:MOST_LINE] for line in said)
                check.failures.append(f"{case.get('name')}:{tail(shown, 8)}")
