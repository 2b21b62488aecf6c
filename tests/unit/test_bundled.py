"""What comes from a bundle of inputs: pins, packages, and what bootstrap takes of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from tests import inputs as made
from tests.inputs import DEB, DEB_PATH, LINE, PIN, changed, digest
from tests.tools import context_in, plan_of, step_into
from vmimage.inputs.unpack import main as unpack
from vmimage.inputs.unpack import python_here
from vmimage.plan import Plan, Source
from vmimage.stages.base import base_stage
from vmimage.stages.bundled import planned_from_bundle
from vmimage.stages.fetch import fetch
from vmimage.util.errors import FetchError, InputError
from vmimage.util.settings import options


@pytest.fixture
def plan(project: Path) -> Plan:
    return plan_of(None, project, debian_mirrors=["deb http://here.example/debian trixie main"])


def test_base_of_a_bundle_has_the_key_that_it_had(plan: Plan, project: Path, tmp_path: Path) -> None:
    there = plan_of(None, project, debian_mirrors=[LINE], today=date(2026, 10, 2))
    path = made.bundle_for(tmp_path / "a.tar", plan)
    found = planned_from_bundle(plan, path, plan.debian_mirrors)
    context = context_in(tmp_path)
    assert base_stage(found, context).key == base_stage(there, context).key != base_stage(plan, context).key
    assert {source for file in found.files for source in file.sources} == {Source(kind="bundle", where=str(path))}


def test_nearest_base_of_a_bundle_is_taken(plan: Plan, tmp_path: Path) -> None:
    told = made.index(plan.packages)
    more = {**told["bases"][0], "packages": [*told["bases"][0]["packages"], "more"], "period": "2026-W41"}
    less = {**told["bases"][0], "packages": [], "period": "2026-W39"}
    told["bases"] = [more, less, *told["bases"]]
    assert planned_from_bundle(plan, made.bundle(tmp_path / "a.tar", told), []).period == "2026-W40"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"packages": ["systemd"]}, "was made without packages that small asks for: fuse3, openssh-server"),
        ({"suite": "bookworm"}, "has no packages of trixie amd64, but of: bookworm amd64"),
        ({"arch": "arm64"}, "has no packages of trixie amd64, but of: trixie arm64"),
        ({"period": "snapshot 20261125T000000Z"}, "has packages of snapshot 20261125T000000Z; images.yaml asks for"),
        ({"mirrors": [LINE.replace("deb ", "deb [trusted=yes] ")]}, "only you can say that its options count"),
        ({"mirrors": [LINE.replace("deb ", "deb [signed-by=/k] ")]}, "only you can say that its options count"),
    ],
)
def test_bundle_that_cannot_serve_is_refused(plan: Plan, tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        planned_from_bundle(plan, made.bundle_for(tmp_path / "a.tar", plan, **changes), plan.debian_mirrors)


def test_frozen_base_wants_the_packages_of_its_moment(plan: Plan, tmp_path: Path) -> None:
    base = plan.base.model_copy(update={"refresh": None, "snapshot": datetime.fromisoformat("2026-11-25T00:00:00Z")})
    frozen = replace(plan, base=base, period="snapshot 20261125T000000Z")
    path = made.bundle_for(tmp_path / "a.tar", plan)
    with pytest.raises(InputError, match=r"images\.yaml asks for snapshot 20261125T000000Z"):
        planned_from_bundle(frozen, path, [])
    path = made.bundle_for(tmp_path / "b.tar", plan, period=frozen.period)
    assert planned_from_bundle(frozen, path, []).period == frozen.period


def test_options_of_the_users_own_line_count_and_no_others(plan: Plan, tmp_path: Path) -> None:
    trusted = LINE.replace("deb ", "deb [trusted=yes] ")
    path = made.bundle_for(tmp_path / "a.tar", plan, mirrors=[trusted])
    source = planned_from_bundle(plan, path, [trusted]).package_source
    assert source
    (line,) = source.lay(tmp_path / "b")
    assert line.startswith("deb [trusted=yes check-valid-until=no by-hash=no target=Packages] copy:")
    assert (tmp_path / "b/0" / DEB_PATH).read_bytes() == DEB
    # An index that hides what it needs gains nothing by it: apt then asks for Debian's signature.
    path = made.bundle_for(tmp_path / "c.tar", plan)
    source = planned_from_bundle(plan, path, []).package_source
    assert source
    assert "trusted" not in source.lay(tmp_path / "d")[0]


def test_pins_come_from_the_bundle_and_from_nowhere_else(plan: Plan, tmp_path: Path) -> None:
    path = made.bundle_for(tmp_path / "a.tar", plan)
    store = context_in(tmp_path).store
    (file,) = planned_from_bundle(replace(plan, files=(replace(plan.files[0], sha256=digest(PIN)),)), path, []).files
    assert fetch([file], store, step_into([]))["tool"].read_bytes() == PIN

    (file,) = planned_from_bundle(plan, path, []).files
    with pytest.raises(FetchError) as refused:
        fetch([file], store, step_into([]))
    assert f"tool v1.2.3+x1 (amd64) could not be had:\n    {path}\n" in refused.value.message
    assert "has no file with the SHA-256" in refused.value.message
    assert "invoke bundle-inputs" in refused.value.hint


def test_pin_that_was_tampered_with_is_not_kept(plan: Plan, tmp_path: Path) -> None:
    path = made.bundle(tmp_path / "a.tar", made.index(plan.packages), {**made.members(), digest(PIN): b"evil"})
    (file,) = planned_from_bundle(replace(plan, files=(replace(plan.files[0], sha256=digest(PIN)),)), path, []).files
    store = context_in(tmp_path).store
    with pytest.raises(FetchError, match="is damaged"):
        fetch([file], store, step_into([]))
    assert not list((store.root / "files").iterdir())


def test_bundle_is_a_file_from_here_on_and_goes_to_all_builds() -> None:
    assert options({"VMIMAGE_BUNDLE": "a.tar"}).bundle == Path("a.tar").absolute()
    chosen = options({"VMIMAGE_BUNDLE": "a.tar"}, bundle="/b.tar")
    assert chosen.bundle == Path("/b.tar")
    assert chosen.environment["VMIMAGE_BUNDLE"] == "/b.tar"


# --- For bootstrap -------------------------------------------------------------------------------------------------


def test_bootstrap_gets_wheels_of_its_own_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version, platform = python_here()
    told = changed("python", {**made.index()["python"], "version": version, "platform": platform})
    path = made.bundle(tmp_path / "a.tar", told)
    assert unpack("wheels", str(path), str(tmp_path)) == 0
    assert (tmp_path / "a-1-py3-none-any.whl").read_bytes() == made.WHEEL
    made.bundle(path, changed("python/version", "3.99"))
    assert unpack("wheels", str(path), str(tmp_path)) == 1
    assert f"has the packages of Python 3.99 for linux-x86_64, and here is {version}" in capsys.readouterr().err


def test_bootstrap_gets_a_mirror_with_packer(tmp_path: Path) -> None:
    path = made.bundle(tmp_path / "a.tar")
    assert unpack("packer", str(path), str(tmp_path / "mirror")) == 0
    assert (tmp_path / "mirror/0" / DEB_PATH).read_bytes() == DEB
    assert unpack("packer", str(made.bundle(path, changed("packer", None))), str(tmp_path / "other")) == 2
    assert not (tmp_path / "other").exists()
