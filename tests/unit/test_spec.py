from __future__ import annotations

import json
from pathlib import Path

import pytest

from dev.lint import SCHEMA, schema_text
from vmimage import PROJECT
from vmimage.spec.load import load_spec
from vmimage.spec.model import Spec, size_bytes
from vmimage.util.errors import InputError


def problems(project: Path, *edits: tuple[str, str]) -> list[str]:
    """Edit images.yaml, and return what is said about it, a line each."""
    path = project / "images.yaml"
    text = path.read_text()
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_spec(path)
    assert refused.value.exit_code == 2
    assert "images.yaml" in refused.value.hint
    return refused.value.message.splitlines()


def test_the_projects_own_images_are_good() -> None:
    spec = load_spec(PROJECT / "images.yaml")
    assert spec.default == "dev-env"
    assert set(spec.images) >= {"toolbox", "dev-env"}
    assert set(spec.images["dev-env"].components) - set(spec.images["toolbox"].components) == {"k3s", "environment"}


def test_models_are_frozen(project: Path) -> None:
    spec = load_spec(project / "images.yaml")
    with pytest.raises(ValueError, match="frozen"):
        spec.default = "other"


def test_every_problem_is_reported_at_once_in_order_of_lines(project: Path) -> None:
    said = problems(
        project,
        ("default: small", "default: smal"),
        ("    suite: trixie\n", "    suite: trixie\n    sute: x\n"),
        ("version: v1.2.3+x1", "version: 4.30"),
        ("disk: 8 GiB", "disk: 8GB"),
        ("components: [tool]", "components: [tol]"),
    )
    assert said == [
        "images.yaml:1: default: no such entry in images: 'smal' (did you mean 'small'?)",
        "images.yaml:5: bases.trixie.sute: unknown key (did you mean 'suite'?)",
        "images.yaml:9: pins.tool.version: text is needed; YAML reads this as another type, "
        'so write it in quotes: "4.30"',
        "images.yaml:28: images.small.components[0]: no such entry in components: 'tol' (did you mean 'tool'?)",
        "images.yaml:29: images.small.disk: '8GB' does not have the form ^[1-9][0-9]* (MiB|GiB)$",
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    base: trixie", "    base: trixie\n    base: sid", "images.yaml:27: images.small.base: duplicate key"),
        ("    disk: 8 GiB", "    machine: {cpu: 2}", "images.small.machine.cpu: unknown key (did you mean 'cpus'?)"),
        (
            "    disk: 8 GiB",
            "    machine: {ports: 3000-70000}",
            "machine.ports: FIRST-LAST, none above 65535",
        ),
        ("    disk: 8 GiB", "    machine: {ports: 3001-3000}", "images.small.machine.ports: FIRST-LAST, none above"),
        ("[inner.tgz, package/tool]", "['{name}']", "only {version} and {arch} are filled in"),
        ("[inner.tgz, package/tool]", "['a{']", "pins.tool.locations[1]:"),
        ("    disk: 8 GiB", "    machine: {cpus: two}", "images.small.machine.cpus:"),
        ("    disk: 8 GiB", "    machine: {cpus: 0}", "images.small.machine.cpus:"),
        ("    disk: 8 GiB", "    machine: {cpus: true}", "images.small.machine.cpus:"),
        ("qcow2: {}", "qcow: {}", "images.small.formats.qcow: unknown key (did you mean 'qcow2'?)"),
        ("      qcow2: {}", "      {}", "images.small.formats: name at least one format"),
        ("    suite: trixie\n", "", "images.yaml:3: bases.trixie.suite: missing, it must be given"),
        ("    pins: [tool]", "    pins: [tol]", "components.tool.pins[0]: no such entry in pins: 'tol' (did you"),
        ("    step: 20-tool.sh", "    step: 20-tol.sh", "components.tool: provision/20-tol.sh is missing"),
        ("    step: 20-tool.sh", "    step: ../x.sh", "components.tool.step: '../x.sh' does not have the form"),
        ("    base: trixie", "    base: [trixie]", "images.small.base:"),
        ("      amd64: a", "      amd64: A", "pins.tool.sha256.amd64:"),
        ("      amd64: a", "      arm64: a", "pins.tool.sha256: no digest for amd64, which images.small needs"),
        ("      amd64: a", "      i386: a", "pins.tool.sha256"),
        ("{version}/tool", "{verison}/tool", "only {version} and {arch} are filled in"),
        ("{version}/tool", "{version/tool", "pins.tool.locations[0]"),
        ("url: https://", "url: ftp://", "pins.tool.locations[0].url:"),
        (
            "      - pypi: a-d",
            "      - path: x\n        pypi: a-d",
            "locations[1]: give exactly one of url, path and pypi",
        ),
        ("        member: [inner.tgz, package/tool]\n", "", "a pypi location needs `member`"),
        ("[systemd, openssh-server]", "['--force']", "bases.trixie.packages[0]:"),
        (
            "    suite: trixie\n",
            "    suite: trixie\n    exclude: [usr/share/doc/*]\n",
            "exclude[0]: 'usr/share/doc/*' does",
        ),
        ("    suite: trixie\n", "    suite: trixie\n    initrd: [$(reboot)]\n", "bases.trixie.initrd[0]:"),
        (
            "    suite: trixie\n",
            "    suite: trixie\n    exclude: [/usr*]\n",
            "exclude[0]: '/usr*' does not have the form",
        ),
        (
            "    suite: trixie\n",
            "    suite: trixie\n    exclude: [/usr/share/doc/*]\n    keep: [/usr/share/docs/a]\n",
            "images.yaml:6: bases.trixie.keep[0]: '/usr/share/docs/a' is in nothing that `exclude` names (did you mean",
        ),
    ],
)
def test_each_problem_says_where_and_what(project: Path, old: str, new: str, said: str) -> None:
    assert any(said in line for line in problems(project, (old, new))), problems(project)


@pytest.mark.parametrize("text", ["", "[]", "a", "- a: 1", "default: [", "\0"])
def test_no_spec_at_all(project: Path, text: str) -> None:
    (project / "images.yaml").write_text(text)
    with pytest.raises(InputError, match=r"images\.yaml:1: "):
        load_spec(project / "images.yaml")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_spec(tmp_path / "images.yaml")


def test_component_without_a_test_file(project: Path) -> None:
    (project / "tests/image/test_tool.py").unlink()
    assert problems(project) == ["images.yaml:20: components.tool: tests/image/test_tool.py is missing"]


def test_unknown_image_suggests_the_near_one(project: Path) -> None:
    spec = load_spec(project / "images.yaml")
    with pytest.raises(InputError, match="did you mean 'small'"):
        spec.image("smal")


def test_sizes() -> None:
    assert size_bytes("40 GiB") == 40 << 30
    assert size_bytes("512 MiB") == 512 << 20


def test_schema_for_editors_is_up_to_date() -> None:
    assert SCHEMA.read_text() == schema_text()
    assert json.loads(schema_text())["properties"].keys() == Spec.model_fields.keys()
