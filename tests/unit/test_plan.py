from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.tools import MONDAY, context_in, plan_of
from vmimage import PROJECT
from vmimage.pipeline import stages_of
from vmimage.plan import Plan, Source, period
from vmimage.spec.load import load_spec
from vmimage.util.errors import InputError


def planned(project: Path, **more: Any) -> Plan:
    return plan_of(None, project, **more)


def keys(project: Path, **more: Any) -> dict[str, str]:
    """Return stage -> key, as far as they are known before anything is made."""
    stages = stages_of(planned(project, **more), context_in(project.parent))
    return {stage.name: stage.key for stage in stages if stage.name in ("base", "bake", "export")}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in before if before[name] != after[name]]


def test_what_is_planned(project: Path) -> None:
    plan = planned(project)
    assert plan.name == "small"
    assert plan.scripts == ["20-tool.sh", "99-seal.sh"]
    assert plan.packages == ("systemd", "openssh-server", "fuse3")
    assert plan.versions == {"tool": "v1.2.3+x1"}
    assert plan.disk_bytes == 8 << 30


def test_locations_are_filled_in_and_percent_encoded(project: Path) -> None:
    (file,) = planned(project).files
    assert file.sources == (
        Source(
            kind="url", where="https://downloads.invalid/v1.2.3%2Bx1/tool-amd64.tar.gz", members=("linux-amd64/tool",)
        ),
        Source(kind="pypi", where="a-distribution==2.0.0", members=("inner.tgz", "package/tool")),
    )


def test_location_of_another_architecture_is_left_out(project: Path) -> None:
    path = project / "images.yaml"
    path.write_text(path.read_text().replace("        arch: amd64", "        arch: arm64"))
    (file,) = planned(project).files
    assert [source.kind for source in file.sources] == ["url"]


def test_mirrors_come_first_by_our_name_and_by_upstreams(project: Path) -> None:
    (file,) = planned(project, mirrors=["https://mirror.invalid/x/", "/srv/files"]).files
    assert [(source.kind, source.where, source.members) for source in file.sources[:4]] == [
        ("url", "https://mirror.invalid/x/tool-v1.2.3%2Bx1-amd64", ()),
        ("url", "https://mirror.invalid/x/tool-amd64.tar.gz", ("linux-amd64/tool",)),
        ("path", "/srv/files/tool-v1.2.3+x1-amd64", ()),
        ("path", "/srv/files/tool-amd64.tar.gz", ("linux-amd64/tool",)),
    ]
    assert len(file.sources) == 6


def test_same_inputs_same_keys(project: Path) -> None:
    assert keys(project) == keys(project)


def test_mirrors_of_pins_change_no_key_since_the_digest_decides(project: Path) -> None:
    assert not changed(keys(project), keys(project, mirrors=["/srv"]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("provision/base.sh", ["base", "bake", "export"]),
        ("provision/base-packages.sh", ["base", "bake", "export"]),
        ("provision/20-tool.sh", ["bake", "export"]),
        ("provision/99-seal.sh", ["bake", "export"]),
        ("provision/run-step", ["bake", "export"]),
        ("provision/files/20-tool/etc/tool.conf", ["bake", "export"]),
        ("packer/image.pkr.hcl.j2", ["bake", "export"]),
        ("templates/appliance.ovf.j2", ["export"]),
        ("templates/Vagrantfile.j2", ["export"]),
        ("tests/image/test_tool.py", []),
    ],
)
def test_a_changed_file_changes_what_reads_it(project: Path, name: str, expected: list[str]) -> None:
    before = keys(project)
    (project / name).write_text("# changed\n")
    assert changed(before, keys(project)) == expected


def test_of_a_template_for_the_guest_what_it_renders_to_counts(project: Path) -> None:
    template = project / "provision/files/20-tool/etc/tool.conf.j2"
    template.write_text("name = {{ image }}\n")
    before = keys(project)
    template.write_text("{# a word to who reads it #}name = {{ image }}\n")
    assert not changed(before, keys(project))
    template.write_text("name = the {{ image }}\n")
    assert changed(before, keys(project)) == ["bake", "export"]
    template.write_text("name = {{ imgae }}\n")
    with pytest.raises(
        InputError, match=r"cannot render provision/files/20-tool/etc/tool\.conf\.j2: 'imgae' is undefined"
    ):
        keys(project)


def test_mode_of_a_file_counts(project: Path) -> None:
    before = keys(project)
    (project / "provision/20-tool.sh").chmod(0o755)
    assert changed(before, keys(project)) == ["bake", "export"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[systemd, openssh-server]", "[systemd, openssh-server, less]", ["base", "bake", "export"]),
        ("    suite: trixie", "    exclude: [/usr/share/doc/*]\n    suite: trixie", ["base", "bake", "export"]),
        ("    suite: trixie", "    initrd: [virtio_blk]\n    suite: trixie", ["base", "bake", "export"]),
        ("version: v1.2.3+x1", "version: v1.2.4", ["bake", "export"]),
        ("disk: 8 GiB", "disk: 9 GiB", ["bake", "export"]),
        ("qcow2: {}", "qcow2: {compression: zlib}", ["export"]),
        ("qcow2: {}", "ova: {}", ["export"]),
        ("qcow2: {}", "raw.zst: {level: 9}", ["export"]),
        ("summary: a tool", "summary: the tool", []),
    ],
)
def test_a_changed_key_changes_what_depends_on_it(project: Path, old: str, new: str, expected: list[str]) -> None:
    before = keys(project)
    path = project / "images.yaml"
    path.write_text(path.read_text().replace(old, new))
    assert changed(before, keys(project)) == expected


def test_images_of_one_base_share_it(tmp_path: Path) -> None:
    bases = set()
    for image in ("toolbox", "dev-env"):
        (base,) = [stage for stage in stages_of(plan_of(image), context_in(tmp_path)) if stage.name == "base"]
        bases.add(base.key)
    assert len(bases) == 1


def test_base_is_made_anew_in_another_week(project: Path) -> None:
    assert not changed(keys(project), keys(project, today=date(2026, 11, 29)))
    assert "base" in changed(keys(project), keys(project, today=date(2026, 11, 30)))


def test_periods() -> None:
    base = load_spec(PROJECT / "images.yaml").bases["trixie"]
    found = {
        refresh: period(base.model_copy(update={"refresh": refresh}), MONDAY) for refresh in (None, "daily", "never")
    }
    assert found == {None: "2026-W48", "daily": "2026-11-23", "never": "always"}
    assert period(base, date(2027, 1, 1)) == "2026-W53"


def test_disk_smaller_than_the_base(project: Path) -> None:
    path = project / "images.yaml"
    path.write_text(path.read_text().replace("disk: 8 GiB", "disk: 4 GiB"))
    with pytest.raises(InputError, match=r"images\.small\.disk: 4 GiB is less than 8 GiB"):
        planned(project)


def test_missing_file_of_the_project(project: Path) -> None:
    (project / "provision/run-step").unlink()
    with pytest.raises(InputError, match="run-step"):
        keys(project)
