"""Values files of an environment: which charts, in which namespace, with which values. Later files win."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dev_env import PROFILES, READER, SYSTEM_NAMESPACES, Failure
from dev_env.bounds import VALUES_BYTES, VALUES_DEPTH, read_text
from dev_env.tools import run
from dev_env.yaml_text import faults, too_deep

NAME_LENGTH = 53
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NO_CHART = "To have no chart at all: `dev-env down`, or a file with `charts: {}`"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
TEXTS = ("chart", "repo", "version", "digest", "namespace")
KEYS = (*TEXTS, "values")
MOST_TOLD = 50
"""Problems of a file; each is looked for in all of its lines."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A chart to install under a name.

    Attributes:
        chart: A directory or archive (absolute), `oci://…`, or the name of a chart in `repo`.
        repo: URL of a chart repository, or nothing.
        digest: `sha256:…` of the chart's archive, or of the OCI manifest; or nothing.
    """

    name: str
    chart: str
    repo: str = ""
    version: str = ""
    digest: str = ""
    namespace: str = "default"
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether the chart is a file or a directory of this machine."""
        return not self.repo and "://" not in self.chart

    def described(self) -> dict[str, Any]:
        """Return it as it stands in a values file."""
        texts = {key: getattr(self, key) for key in TEXTS if getattr(self, key)}
        return {**texts, **({"values": dict(self.values)} if self.values else {})}


def find(argument: str) -> Path:
    """Return the values file that an argument of `up` means: a file, or the name of a profile.

    Raises:
        Failure: There is none.
    """
    profile = PROFILES / f"{argument}.yaml"
    path = Path(argument)
    if path.is_file():
        return path.absolute()
    if re.fullmatch(NAME, argument) and profile.is_file():
        return profile
    known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    raise Failure(
        f"there is no file {argument}, and no profile of that name{near_miss(argument, known)}",
        f"the profiles are: {', '.join(known)}",
    )


def read(path: Path) -> dict[str, Any]:
    """Read a values file as helm reads one, with charts' relative paths made absolute.

    Raises:
        Failure: It is no YAML, says something that is not understood, or names no chart; its first MOST_TOLD problems
            are named.
    """
    text = read_text(path, VALUES_BYTES)
    if found := [f"{path.name}:{line}: {what}" for line, what in islice(faults(text, 2 * VALUES_DEPTH), MOST_TOLD)]:
        raise Failure("\n".join(found), f"correct {path}; `dev-env up --help` shows its form")
    data = _read_by_helm(path)
    some = islice(_problems(data), MOST_TOLD)
    problems = [f"{path.name}:{line_of(text, where)}: {'.'.join(where)}: {what}" for where, what in some]
    if problems:
        raise Failure("\n".join(problems), f"correct {path}; `dev-env up --help` shows its form")
    if data.get("charts") is None:
        raise Failure(f"{path} names no chart", NO_CHART)
    for name, chart in data["charts"].items():
        source = str((chart or {}).get("chart") or "")
        if source and not chart.get("repo") and "://" not in source:
            chart["chart"] = _absolute(path, name, source)
    return data


def _read_by_helm(path: Path) -> dict[str, Any]:
    command = ["helm", "template", "read", str(READER), "--values", str(path)]
    try:
        # The first line is `---`, the second names the template.
        data = json.loads(run(command).split("\n", 2)[2])
    except Failure as error:
        reason = str(error).rsplit("Error: ", 1)[-1]
        raise Failure(
            f"{path} cannot be read: {reason}", f"correct the file; `dev-env up --help` shows its form. {NO_CHART}"
        ) from error
    except (ValueError, LookupError) as error:
        raise Failure(f"{path} cannot be read: helm does not answer in JSON: {error}", "`dev-env doctor`") from error
    except RecursionError:
        data = None
    if data is None or too_deep(data, VALUES_DEPTH):
        raise Failure(f"{path} is nested more than {VALUES_DEPTH} deep", "is it the file that was meant?")
    return dict(data)


def _absolute(path: Path, name: str, source: str) -> str:
    try:
        return str((path.parent / Path(source).expanduser()).resolve())
    except (RuntimeError, ValueError, OSError) as error:  # ~nobody, a link that leads to itself
        raise Failure(f"{path.name}: charts.{name}.chart: {source}: {error}", f"correct {path}") from error


def merged(files: Sequence[Mapping[str, Any]]) -> list[Release]:
    """Compose files into what they ask for: later ones win, key by key; a chart that is null is left out.

    Raises:
        Failure: A chart has no source, or all are left out, which is what `dev-env down` is for.
    """
    charts: dict[str, Any] = {}
    for file in files:
        charts = merge(charts, file.get("charts") or {})
    wanted = {name: chart for name, chart in charts.items() if chart is not None}
    if charts and not wanted:
        raise Failure(f"every chart is left out: {', '.join(charts)}", NO_CHART)
    nameless = [name for name, chart in wanted.items() if not chart.get("chart")]
    if nameless:
        raise Failure(f"no file names the `chart` of {', '.join(nameless)}", "add `chart: …` to one of them")
    return [Release(name=name, **{key: value for key, value in chart.items() if value is not None})
            for name, chart in wanted.items()]  # fmt: skip


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another, at every depth; lists and texts are replaced."""
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def near_miss(word: str, known: Sequence[str]) -> str:
    """Return ` (did you mean …?)` when a known word is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def line_of(text: str, path: Sequence[str]) -> int:
    """Return the line on which the last key of a path stands, as well as it can be told without a YAML parser."""
    lines, at = text.splitlines(), 0
    for key in path:
        pattern = re.compile(rf"""[\s{{,]*["']?{re.escape(key)}["']?\s*:""")
        at = next((number for number in range(at, len(lines)) if pattern.match(lines[number])), at)
    return at + 1


def _problems(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    for key in data.keys() - {"charts", "description"}:
        yield (key,), f"unknown key{near_miss(key, ['charts', 'description'])}"
    charts = data.get("charts")
    if charts is None:
        return
    if not isinstance(charts, Mapping):
        yield ("charts",), f"a mapping of names to charts is needed. {NO_CHART}"
        return
    for name, chart in charts.items():
        where = ("charts", str(name))
        if not NAME.fullmatch(str(name)):
            yield where, "a name has small letters, digits and dashes, at most 53"
        if chart is not None and not isinstance(chart, Mapping):
            yield where, "a mapping is needed: chart, namespace, values"
        elif chart:
            yield from _chart_problems(where, chart)


def _chart_problems(where: tuple[str, ...], chart: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in chart.items():
        if key not in KEYS:
            yield (*where, key), f"unknown key{near_miss(key, KEYS)}"
        elif key in TEXTS and not isinstance(value, str | None):
            yield (*where, key), f'text is needed; write it in quotes: "{value}"'
        elif key in TEXTS and CONTROL.search(value or ""):
            yield (*where, key), "a control character is in it"
        elif key == "values" and not isinstance(value, Mapping | None):
            yield (*where, key), "a mapping is needed"
        elif key == "digest" and value and not DIGEST.fullmatch(value):
            yield (*where, key), "a digest is `sha256:` and 64 hexadecimal digits"
        elif key == "namespace" and (problem := _namespace_problem(value or "default")):
            yield (*where, key), problem


def _namespace_problem(name: str) -> str:
    if name in SYSTEM_NAMESPACES:
        return "this namespace is the system's; choose another"
    return "" if NAME.fullmatch(name) else "a namespace has small letters, digits and dashes"
