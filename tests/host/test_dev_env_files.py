"""Values files of the guest's command; read by the real helm where it can be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from dev_env import Failure, files
from dev_env.files import Release, find, line_of, merge, merged
from dev_env.yaml_text import yaml_text
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import pinned_tools
from vmimage import PROJECT

# Ten times itself, nine times over.
BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + step)}: &{chr(98 + step)} [{', '.join([f'*{chr(97 + step)}'] * 10)}]\n" for step in range(9)
) + "charts: {a: {chart: x}}\n"  # fmt: skip
SHARE = PROJECT / "provision/files/60-environment/usr/local/share/dev-env"


@pytest.fixture
def helm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The pinned helm on PATH, and the reader and profiles of the sources."""
    monkeypatch.setenv("PATH", str(pinned_tools(tmp_path)), prepend=":")
    monkeypatch.setattr(files, "READER", SHARE / "reader")
    monkeypatch.setattr(files, "PROFILES", SHARE / "profiles")


@pytest.mark.usefixtures("helm")
def test_file_is_read_as_helm_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "description: mine\ncharts:\n  shop:\n    chart: ./charts/shop\n    version: '1.10'\n"
        "    values: {replicas: 2, nothing: null, list: [1, a]}\n  far: {chart: web, repo: 'https://x.invalid'}\n"
        "  oci: {chart: 'oci://x.invalid/web'}\n  gone: null\n"
    )
    far, oci, shop = merged([files.read(path)])
    assert shop == Release(
        name="shop",
        chart=str(tmp_path / "charts/shop"),
        version="1.10",
        values={"replicas": 2, "nothing": None, "list": [1, "a"]},
    )
    assert (far.chart, far.is_local, oci.chart, oci.is_local) == ("web", False, "oci://x.invalid/web", False)


@pytest.mark.usefixtures("helm")
def test_what_is_exported_helm_reads_as_it_was(tmp_path: Path) -> None:
    texts = [
        "1e3",
        "0o17",
        "on",
        "~",
        "0x1F",
        "1_000",
        "2020-01-01",
        "",
        "a\nb\n",
        "  a\nb\n\n",
        "a\t\n",
        "é\u2028\n",
        "x: #",
    ]
    values = {"texts": texts, "on": {text or "empty": text for text in texts}, "none": None, "list": [], "more": {}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml_text({"charts": {"shop": {"chart": "/charts/shop", "values": values}}}))
    (shop,) = merged([files.read(path)])
    assert shop.values == values


@pytest.mark.usefixtures("helm")
def test_every_profile_is_good_and_says_what_it_is_for() -> None:
    names = sorted(path.stem for path in (SHARE / "profiles").glob("*.yaml"))
    assert names == ["frontend", "full-stack", "hello", "services"]
    for name in names:
        path = find(name)
        assert path.read_text().startswith("# ")
        for release in merged([files.read(path)]):
            assert (Path(release.chart) / "Chart.yaml").is_file()


@pytest.mark.usefixtures("helm")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chart: {}\n", "mine.yaml:1: chart: unknown key (did you mean 'charts'?)"),
        ("charts: [a]\n", "mine.yaml:1: charts: a mapping of names to charts is needed"),
        ("charts:\n  A_b: {chart: x}\n", "mine.yaml:2: charts.A_b: a name has small letters"),
        ("charts:\n  a: x\n", "mine.yaml:2: charts.a: a mapping is needed"),
        ("charts:\n  a:\n    chrt: x\n", "mine.yaml:3: charts.a.chrt: unknown key (did you mean 'chart'?)"),
        (
            "charts:\n  a:\n    version: 1.10\n",
            'mine.yaml:3: charts.a.version: text is needed; write it in quotes: "1.1"',
        ),
        ("charts:\n  a:\n    values: [1]\n", "mine.yaml:3: charts.a.values: a mapping is needed"),
        ("charts:\n  a:\n    digest: abc\n", "mine.yaml:3: charts.a.digest: a digest is `sha256:`"),
        ("charts:\n  a:\n    namespace: A\n", "mine.yaml:3: charts.a.namespace: a namespace has"),
        ('charts:\n  a:\n    chart: "x\\0y"\n', "mine.yaml:3: charts.a.chart: a control character is in it"),
        ('charts:\n  a:\n    repo: "x\\e[2J"\n', "mine.yaml:3: charts.a.repo: a control character is in it"),
        ("charts:\n  a:\n    chart: ~no-such-user/x\n", "mine.yaml: charts.a.chart: ~no-such-user/x: "),
        ("charts:\n  traefik: {chart: x, namespace: kube-system}\n", "charts.traefik.namespace: this namespace is the"),
        ("charts: {\n", "cannot be read:"),
        ("- a\n", "cannot be read:"),
        ("charts: {a: {chart: x}}\n---\ncharts: {b: {chart: x}}\n", "mine.yaml:2: a second document begins"),
        ("---\n---\ncharts: {b: {chart: x}}\n", "mine.yaml:2: a second document begins"),
        ("charts: {a: {chart: x}}\ncharts: {b: {chart: x}}\n", "mine.yaml:2: charts: this key is here twice"),
        ("charts:\n  a: {chart: x}\n  'a': {chart: z}\n", "mine.yaml:3: a: this key is here twice"),
        ("charts: {a: {chart: x, values: {l: [{p: 1, p: 2}]}}}\n", "mine.yaml:1: p: this key is here twice"),
        (f"charts: {{a: {{chart: x, values: {'{a: ' * 150}1{'}' * 150}}}}}\n", "nested more than 100 deep"),
        (f"charts: {{a: {{chart: x, values: {'{a: ' * 1500}1{'}' * 1500}}}}}\n", "nested more than"),
        (f"charts: {{a: {{chart: x, values: {'[' * 1500}{']' * 1500}}}}}\n", "nested more than"),
        (BOMB, "cannot be read:"),
    ],
)
def test_wrong_file_is_refused_with_line_and_key(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(Failure) as refused:
        files.read(path)
    assert said in str(refused.value)
    assert refused.value.hint


@pytest.mark.usefixtures("helm")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "# a template that came out empty\n",
        "---\n",
        "null\n",
        "{}\n",
        "charts:\n",
        "charts: null\n",
        "charts: ~\n",
        "charts: []\n",
        "charts: false\n",
        "charts: 0\n",
        "charts: ''\n",
        "description: nothing\n",
        "- a\n",
        "text\n",
        "charts: {shop: null}\n",
        "charts: {shop: null, db: ~}\n",
    ],
)
def test_file_that_names_no_chart_is_refused_and_down_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(Failure) as refused:
        merged([files.read(path)])
    assert "dev-env down" in f"{refused.value}{refused.value.hint}"


@pytest.mark.usefixtures("helm")
def test_no_chart_is_wanted_when_it_is_written_by_hand_and_not_by_a_second_file(tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("charts: {}\n")
    (tmp_path / "one.yaml").write_text("charts: {shop: {chart: ./shop}}\n")
    (tmp_path / "left.yaml").write_text("charts: {shop: null}\n")
    none, one, left = (files.read(tmp_path / f"{name}.yaml") for name in ("none", "one", "left"))
    assert merged([none]) == []
    assert [release.name for release in merged([none, one])] == ["shop"]
    with pytest.raises(Failure, match="every chart is left out: shop") as refused:
        merged([one, left])
    assert "dev-env down" in refused.value.hint


def test_file_that_is_no_text_or_too_large_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"charts: \xff\n")
    with pytest.raises(Failure, match="no text in UTF-8"):
        files.read(path)
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(Failure, match="has more than 1 MiB"):
        files.read(path)
    (tmp_path / "loop").symlink_to("loop")
    for name in ("a\0b", "~nobody/x.yaml", str(tmp_path), str(tmp_path / "loop")):
        with pytest.raises(Failure, match="there is no file"):
            find(name)


def test_unknown_profile_is_named_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PROFILES", SHARE / "profiles")
    with pytest.raises(Failure, match=r"no profile of that name \(did you mean 'frontend'\?\)") as refused:
        find("fronted")
    assert "services" in refused.value.hint


def test_later_files_win_key_by_key() -> None:
    first = {"charts": {"a": {"chart": "/a", "values": {"x": 1, "y": {"z": [1, 2]}}}, "b": {"chart": "/b"}}}
    second = {"charts": {"a": {"values": {"y": {"z": [3]}, "new": True}}, "b": None, "c": {"chart": "/c"}}}
    assert merged([first, second]) == [
        Release(name="a", chart="/a", values={"x": 1, "y": {"z": [3]}, "new": True}),
        Release(name="c", chart="/c"),
    ]


def test_chart_without_a_source_is_refused() -> None:
    with pytest.raises(Failure, match="no file names the `chart` of a"):
        merged([{"charts": {"a": {"values": {}}}}])


def test_line_of_a_nested_key() -> None:
    text = "# chart: no\ncharts:\n  other:\n    chart: 1\n  'a':\n    chart: 2\n"
    assert line_of(text, ["charts", "a", "chart"]) == 6


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(value=st.dictionaries(st.text(), json_values, max_size=4))
def test_written_yaml_is_read_back(value: dict[str, object]) -> None:
    text = yaml_text(value)
    assert yaml.safe_load(text) == json.loads(json.dumps(value))


@given(
    first=st.dictionaries(st.text(max_size=2), json_values), second=st.dictionaries(st.text(max_size=2), json_values)
)
def test_merging_keeps_all_keys_and_the_later_values(first: dict[str, object], second: dict[str, object]) -> None:
    both = merge(first, second)
    assert both.keys() == first.keys() | second.keys()
    assert merge(both, second) == both
