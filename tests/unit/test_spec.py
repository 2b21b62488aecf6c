from __future__ import annotations

import json
import os
import time
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
        ("{version}/tool", "{version:d}/tool", "pins.tool.locations[0]: only {version} and {arch} are filled in"),
        ("{version}/tool", "{version!x}/tool", "pins.tool.locations[0]: only {version} and {arch} are filled in"),
        ("{version}/tool", "{version!r}/tool", "pins.tool.locations[0]: only {version} and {arch} are filled in"),
        ("{version}/tool", "{version:{arch}}/tool", "pins.tool.locations[0]: only {version} and {arch} are"),
        ("{version}/tool", "{version.x}/tool", "pins.tool.locations[0]: only {version} and {arch} are filled in"),
        ("{version}/tool", "{version[0]}/tool", "pins.tool.locations[0]: only {version} and {arch} are filled in"),
        ("{version}/tool", "{}/tool", "pins.tool.locations[0]: only {version} and {arch} are filled in"),
        ("{version}/tool", "{0}/tool", "pins.tool.locations[0]: only {version} and {arch} are filled in"),
        ("linux-{arch}/tool", "linux-{arch:>9}/tool", "pins.tool.locations[0]: only {version} and {arch}"),
        ("      - pypi: a-d", "      - path: ~nobody/x\n      - pypi: a-d", "locations[1]: path: ~/ is the only home"),
        ("pypi: a-distribution==2.0.0", "pypi: --pre==1", "images.yaml:14: pins.tool.locations[1].pypi: '--pre==1'"),
        ("pypi: a-distribution==2.0.0", "pypi: -r==x", "pins.tool.locations[1].pypi: '-r==x' does not have the form"),
        ("pypi: a-distribution==2.0.0", "pypi: a==--pre", "pins.tool.locations[1].pypi: 'a==--pre' does not have"),
        ("    step: 20-tool.sh", "    step: 99-seal.sh", "images.yaml:20: components.tool.step: 99-seal.sh ends every"),
        ("    step: 20-tool.sh", "    step: 10-seal.sh", "images.yaml:20: components.tool.step: 99-seal.sh ends every"),
        ("components: [tool]", "components: [tool, tool]", "images.yaml:27: images.small.components: 'tool' stands"),
        (
            "    pins: [tool]",
            "    pins: [tool, tool]",
            "images.yaml:21: components.tool.pins: 'tool' stands there twice",
        ),
        (
            "disk: 8 GiB",
            "disk: 9999999999999999999 GiB",
            "images.yaml:28: images.small.disk: 9999999999999999999 GiB is",
        ),
        ("disk: 8 GiB", "disk: 1025 GiB", "images.yaml:28: images.small.disk: 1025 GiB is more than 1024 GiB"),
        ("disk: 8 GiB", f"disk: {'9' * 5000} GiB", "images.yaml:28: images.small.disk: String should have at most 30"),
        ("disk: 8 GiB", "disk: 8191 MiB", "images.yaml:28: images.small.disk: 8191 MiB is less than 8 GiB"),
        ("    disk: 8 GiB", "    machine: {memory: 1 MiB}", "images.small.machine.memory: 1 MiB is less than 256 MiB"),
        ("    disk: 8 GiB", "    machine: {memory: 2048 GiB}", "machine.memory: 2048 GiB is more than 1024 GiB"),
        (
            "    disk: 8 GiB",
            "    machine: {ports: 8000-8100}",
            "images.yaml:28: images.small.machine.ports: 8080 is in",
        ),
        ("    disk: 8 GiB", "    machine: {ports: 2200-2300}", "images.small.machine.ports: 2222 is in this range"),
        ("    disk: 8 GiB", "    machine: {ports: 6400-6500}", "images.small.machine.ports: 6443 is in this range"),
        ("    disk: 8 GiB", "    machine: {ports: 8443-8443}", "images.small.machine.ports: 8443 is in this range"),
        ("    disk: 8 GiB", "    machine: {ports: 30000-30256}", "machine.ports: 257 ports, 256 at most"),
        ("summary: a small image", 'summary: "a\\e[2Jb"', "images.small.summary: the control character '\\x1b' cannot"),
        ("summary: a small image", 'summary: "a\\nb"', "images.small.summary: the control character '\\n' cannot"),
        ("summary: a small image", 'summary: "a\\u202eb"', "images.small.summary: the control character '\\u202e'"),
        ("summary: a small image", 'summary: "a\\ud800b"', "images.small.summary: "),
        ("summary: a tool", 'summary: "a\\0b"', "components.tool.summary: the control character '\\x00' cannot"),
        ("[inner.tgz, package/tool]", '["a\\a"]', "locations[1].member[0]: the control character '\\x07' cannot"),
        (
            "- url: https://downloads",
            '- url: "http://\\e[31m/"\n      - url: https://d',
            "locations[0].url: the control",
        ),
        ("[systemd, openssh-server]", '[systemd]\n    keep: ["/a/\\ab"]', "bases.trixie.keep[0]: the control"),
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


def test_two_components_with_one_step(project: Path) -> None:
    (project / "tests/image/test_other.py").write_text("")
    other = "  other:\n    summary: o\n    step: 20-tool.sh\nimages:\n"
    assert problems(project, ("images:\n", other)) == [
        "images.yaml:25: components.other.step: 20-tool.sh is the step of tool already: give each a step of its own"
    ]


def test_range_as_long_as_can_be_and_the_largest_sizes(project: Path) -> None:
    path = project / "images.yaml"
    machine = "disk: 1024 GiB\n    machine: {ports: 30000-30255, memory: 1024 GiB}"
    path.write_text(path.read_text().replace("disk: 8 GiB", machine))
    load_spec(path)


MANY = {
    "unknown keys": "images:\n" + "".join(f"  i{n}: {{summry: x}}\n" for n in range(1200)),
    "names that point nowhere": "images:\n" + "".join(f"  i{n}: {{base: b{n}x}}\n" for n in range(1200))
    + "bases:\n" + "".join(f"  b{n}: {{suite: x}}\n" for n in range(800)),
    "components": "components:\n" + "".join(f"  c{n}: {{step: 20-c{n}.sh}}\n" for n in range(1200)),
    "references": "images:\n  a: {components: [" + "c, " * 4500 + "]}",
    "long names": "images:\n  " + "a" * 100_000 + ": {base: " + "b" * 100_000 + "}",
}  # fmt: skip


@pytest.mark.parametrize("what", MANY)
def test_many_problems_are_told_soon_and_not_all(what: str, project: Path) -> None:
    (project / "images.yaml").write_text(MANY[what])
    started = time.process_time()
    with pytest.raises(InputError) as refused:
        load_spec(project / "images.yaml")
    assert time.process_time() - started < 2.0
    assert len(refused.value.message.splitlines()) <= 51
    assert len(refused.value.message) < 20_000


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "too large", "no UTF-8"])
def test_thing_in_the_place_of_the_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "images.yaml"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\xff" if kind == "no UTF-8" else b"#" * (2 << 20))
    with pytest.raises(InputError, match="cannot read"):
        load_spec(path)


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
