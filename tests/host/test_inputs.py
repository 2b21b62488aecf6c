"""Bundles of inputs against apt, pip and bootstrap themselves, with a mirror of one package; and without a network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import Exit

from tests.host.test_base import write_mirror
from tests.tools import context_in, plan_of
from vmimage import pipeline
from vmimage.commands.bundle_inputs import command as bundling
from vmimage.commands.bundle_inputs.command import Collected, compress, deb_sources, require_place, require_whole
from vmimage.commands.rebuild import Inputs, Recorded, with_packages
from vmimage.inputs.bundle import BundledBase, Index, PythonFiles, write_bundle
from vmimage.inputs.kept import KeptPackages, keep_debs, keep_lists, kept_file, kept_packages, kept_part
from vmimage.plan import Plan, Source
from vmimage.stages import base as making
from vmimage.stages.base import base_stage
from vmimage.stages.bundled import planned_from_bundle
from vmimage.util.errors import BuildError, InputError
from vmimage.util.run import Confine, run
from vmimage.util.settings import options

OPTIONS = "trusted=yes check-valid-until=no"
STANDS_FOR = {
    "--variant=minbase": "--variant=extract",
    # Hooks of later phases are not called then.
    f"--customize-hook={making.LIST_HOOK}": f"--extract-hook={making.LIST_HOOK}",
}
NO_PYTHON = PythonFiles(version="3", platform="x", files={})
OFFLINE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def unpacked(work: Path, lines: Sequence[str], *, offline: bool = False) -> Path:
    """Unpack the package of a mirror, as a base does it, without what only a whole system has; returns the tree."""
    work.mkdir(exist_ok=True)
    base = base_stage(plan_of("toolbox", debian_mirrors=lines), context_in(work))
    object.__setattr__(base, "packages", ("base-files",))
    # One package is no system: it is unpacked, and that is all.
    argv = [
        STANDS_FOR.get(argument, argument)
        for argument in making.mmdebstrap_command(base, work / "tree")
        if argument != f"--customize-hook={making.HOOK}"
    ]
    sources = work / "sources.list"
    sources.write_text("".join(f"{line}\n" for line in lines))
    with sources.open() as file:
        env = {**making.ENVIRONMENT, "TMPDIR": str(work)}
        run([*(["unshare", "--net"] * offline), *argv], confine=Confine.FAKE_ROOT, stdin=file.fileno(), env=env)
    return work / "tree"


def state(tree: Path) -> dict[str, tuple[int, str]]:
    """Return path -> mode, and what it holds, of a root directory; but for that it was told where packages are."""
    found = {}
    for path in sorted(tree.rglob("*")):
        mode = path.lstat().st_mode
        data = path.read_bytes() if stat.S_ISREG(mode) else os.fsencode(path.readlink()) if path.is_symlink() else b""
        if path.name not in ("sources.list", "0000sources.list"):
            found[str(path.relative_to(tree))] = (mode, hashlib.sha256(data).hexdigest())
    return found


@dataclass(frozen=True)
class Made:
    """A base that was made from a mirror which then went on, and a bundle of it."""

    plan: Plan
    line: str
    bundle: Path
    tree: Path
    cache: Path
    key: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made in a folder")
    mirror = folder / "mirror"
    write_mirror(mirror, folder / "package", version="1")
    line = f"deb [{OPTIONS}] copy:{str(mirror).replace(' ', '%20')} trixie main"
    tree = unpacked(folder / "work", [line])
    plan = plan_of("toolbox", debian_mirrors=[line])
    base = base_stage(plan, context_in(folder))
    kept, result = folder / "work/kept", folder / "result"
    result.mkdir()
    (deb,) = (mirror / "pool").iterdir()
    facts = {"package": "base-files", "version": "1", "bytes": deb.stat().st_size, "file": f"pool/{deb.name}"}
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    debs = [{**facts, "sha256": digest}]
    (result / making.DEBS).write_text(json.dumps(debs))
    keep_lists(kept, debs, result)
    keep_debs(kept / "debs", {digest}, base.context.store)
    found = base.context.store.add("base", base.inputs, result, {})

    collected, part = Collected(), kept_part(found.path)
    require_whole(part, found.path, base.context.store)
    collected.files |= {sha256: kept_file(found.path, sha256, base.context.store) for sha256 in part.digests}
    collected.add_lists(part)
    bases = (
        BundledBase(
            suite="trixie", arch="amd64", period=base.period, mirrors=base.mirrors, packages=base.packages, part=part
        ),
    )
    compressed = dict(compress(collected, folder))
    index = Index(pins={}, bases=bases, python=NO_PYTHON, compressed=compressed)
    write_bundle(folder / "inputs.tar", index, collected.files)
    # The mirror of another date: nothing of the first one is there any more.
    shutil.rmtree(mirror)
    write_mirror(mirror, folder / "package-2", version="2")
    return Made(plan, line, folder / "inputs.tar", tree, folder, found.key)


def laid(made: Made, folder: Path, lines: Sequence[str]) -> list[str]:
    plan = planned_from_bundle(plan_of("toolbox", debian_mirrors=lines), made.bundle, lines)
    assert base_stage(plan, context_in(folder)).key == made.key
    assert plan.package_source
    return plan.package_source.lay(folder / "a mirror")


def test_base_of_a_bundle_is_that_of_the_mirror_without_a_network(made: Made, tmp_path: Path) -> None:
    tree = unpacked(tmp_path / "work", laid(made, tmp_path, [made.line]), offline=True)
    assert (tree / "usr/share/version").read_text() == "1"
    assert state(tree) == state(made.tree)
    now = unpacked(tmp_path / "now", [made.line])
    assert (now / "usr/share/version").read_text() == "2"


def test_packages_that_the_cache_kept_are_those_of_then(made: Made, tmp_path: Path) -> None:
    source = kept_packages(context_in(made.cache).store, made.key, [made.line])
    assert source
    tree = unpacked(tmp_path / "work", source.lay(tmp_path / "mirror"), offline=True)
    assert state(tree) == state(made.tree)


def test_release_is_made_again_from_what_the_cache_kept(made: Made, tmp_path: Path) -> None:
    recorded = Recorded(
        keys={"base": made.key},
        inputs=Inputs.model_validate({"base": {"period": "2026-W01"}, "bake": {}, "export": {}}),
        raw={},
        commit="",
        packages={"base-files": "1"},
        debs={},
    )
    plan = with_packages(plan_of("toolbox", debian_mirrors=[made.line]), recorded, context_in(made.cache).store)
    assert (plan.period, plan.package_versions) == ("2026-W01", {"base-files": "1"})
    assert isinstance(plan.package_source, KeptPackages)
    bundled = planned_from_bundle(plan_of("toolbox"), made.bundle, [made.line])
    again = with_packages(bundled, recorded, context_in(made.cache).store)
    assert again.package_source == bundled.package_source
    assert with_packages(plan_of("toolbox"), recorded, context_in(tmp_path).store).package_source is None


def test_who_may_sign_is_not_taken_from_a_bundle(made: Made, tmp_path: Path) -> None:
    other = made.line.replace(f"[{OPTIONS}] ", "")
    with pytest.raises(InputError, match="only you can say that its options count"):
        laid(made, tmp_path, [other])
    # Also not where it says that it needs nobody's word.
    source = kept_packages(context_in(made.cache).store, made.key, [other])
    assert source
    with pytest.raises(BuildError, match="is not signed"):
        unpacked(tmp_path / "work", source.lay(tmp_path / "mirror"), offline=True)


def test_package_that_is_not_the_signed_one_is_refused_by_apt(made: Made, tmp_path: Path) -> None:
    lines = laid(made, tmp_path, [made.line])
    (deb,) = (tmp_path / "a mirror/0/pool").iterdir()
    data = deb.read_bytes()
    deb.unlink()
    deb.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BuildError, match="Hash Sum mismatch"):
        unpacked(tmp_path / "work", lines, offline=True)


def test_list_that_only_a_compressed_form_is_signed_of_cannot_be_bundled(made: Made) -> None:
    store = context_in(made.cache).store
    folder = store.root / "base" / made.key
    part = kept_part(folder)
    (repository,) = part.repositories
    lists = {path: digest for path, digest in repository.lists.items() if not path.endswith("Release")}
    with pytest.raises(BuildError, match="signs only compressed forms of"):
        require_whole(replace(part, repositories=(replace(repository, lists=lists),)), folder, store)


def test_package_that_the_cache_has_lost_is_tried_for_at_its_mirrors(made: Made) -> None:
    part = kept_part(made.cache / "cache" / "base" / made.key)
    mirror = made.cache / "mirror"
    assert deb_sources("pool/a.deb", part, [made.line]) == (Source(kind="path", where=f"{mirror}/pool/a.deb"),)
    uri = "http://ci:secret@deb.example/debian"
    other = replace(part, repositories=(replace(part.repositories[0], uri="http://***@deb.example/debian/"),))
    assert deb_sources("pool/a.deb", other, [f"deb {uri} trixie main"]) == (
        Source(kind="url", where=f"{uri}/pool/a.deb"),
    )
    gone = replace(part, repositories=(replace(part.repositories[0], uri="tor+http://x/"),))
    assert deb_sources("pool/a.deb", gone, []) == ()


def test_bundle_is_not_written_over_another_file(tmp_path: Path) -> None:
    chosen = options({"VMIMAGE_CACHE": str(tmp_path)})
    (tmp_path / "a.tar").symlink_to("/none")
    for to, why in ((tmp_path / "a.tar", "exists"), (tmp_path / "none/a.tar", "there is no folder")):
        with pytest.raises(InputError, match=why):
            require_place(to, chosen)
    with pytest.raises(InputError, match="a bundle is not made from a bundle"):
        require_place(tmp_path / "b.tar", replace(chosen, bundle=tmp_path / "a.tar"))


# --- The command -----------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """`invoke bundle-inputs` of a base that the cache of `made` has."""

    made: Made
    to: Path
    capsys: pytest.CaptureFixture[str]

    def run(self) -> tuple[int, dict[str, Any]]:
        """Run it; returns its exit code, and the last thing that it told."""
        chosen = options({"VMIMAGE_CACHE": str(self.made.cache / "cache")})
        self.capsys.readouterr()
        try:
            bundling.make_bundle(["toolbox"], chosen, self.to, json=True)
            code = 0
        except Exit as error:
            code = error.code
        return code, json.loads(self.capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def command(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    # Of the rest there are tests above.
    monkeypatch.setattr(pipeline, "plan_image", lambda *_: replace(made.plan, files=()))
    monkeypatch.setattr(bundling, "get_wheels", lambda *_: NO_PYTHON)
    monkeypatch.setattr(bundling, "get_packer", lambda *_: None)
    return Command(made, tmp_path / "inputs.tar", capsys)


def test_bundle_is_complete_or_not_there_and_nothing_is_fetched_again(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        # As Ctrl-C does it, in the middle of the file.
        patched.setattr("vmimage.inputs.bundle.finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command.run()[0] == 130
    assert not list(command.to.parent.glob("*inputs.tar*"))
    # The mirror has none of it any more.
    code, told = command.run()
    assert (code, told["event"], told["path"]) == (0, "result", str(command.to))
    assert told["sha256"] == hashlib.sha256(command.to.read_bytes()).hexdigest()
    assert command.to.read_bytes() == command.made.bundle.read_bytes()
    assert command.run()[0] == 2, "it is not written over"


def test_package_that_nobody_has_any_more_is_named(command: Command) -> None:
    (digest,) = kept_part(command.made.cache / "cache/base" / command.made.key).debs.values()
    file = command.made.cache / "cache/files" / digest
    data = file.read_bytes()
    file.unlink()
    try:
        code, told = command.run()
    finally:
        file.write_bytes(data)
    assert (code, told["event"]) == (4, "error")
    assert "base-files 1 (amd64) could not be had" in told["message"]
    assert not command.to.exists()
