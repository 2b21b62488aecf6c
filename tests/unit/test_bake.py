from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import hcl2
import pytest

from tests.tools import context_in, plan_of, step_into
from vmimage import PROJECT
from vmimage.cache.store import Store
from vmimage.spec.model import SEAL_STEP
from vmimage.stages.bake import packer as packing
from vmimage.stages.bake.layers import Layer, Layers
from vmimage.stages.bake.machine import packer_values
from vmimage.stages.bake.packer import needs_plugins, write_plugins_file
from vmimage.stages.bake.ports import BakePorts, own_ports
from vmimage.stages.bake.position import Position, failure, require_written
from vmimage.stages.bake.stage import BakeStage, bake_stage
from vmimage.stages.base import base_stage
from vmimage.util.errors import BuildError
from vmimage.util.render import hcl_string, render
from vmimage.util.run import Completed
from vmimage.vm.accelerator import Accelerator
from vmimage.vm.serial import CUT
from vmimage.vm.ssh import KeyPair

KEY = KeyPair(private=Path("/w/key"), public="ssh-ed25519 AAAA")


@pytest.fixture
def bake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BakeStage:
    """The bake of dev-env, on a host whose QEMU emulates processors one by one."""
    monkeypatch.setattr("vmimage.vm.accelerator.emulates_in_parallel", lambda: False)
    plan = plan_of("dev-env")
    return bake_stage(plan, base_stage(plan, context_in(tmp_path / "context")))


PORTS = BakePorts(ssh=20000, vnc=25000)


def rendered(bake: BakeStage, folder: str = "/w", accelerator: Accelerator = "tcg") -> str:
    scripts = [*(layer.script for layer in bake.layers), SEAL_STEP]
    values = packer_values(scripts, Path("/base"), Path(folder), KEY, accelerator, PORTS, 22000)
    return render(PROJECT / "packer" / "image.pkr.hcl.j2", values)


def test_template_runs_every_step_in_order_and_seals_last(bake: BakeStage) -> None:
    template = hcl2.load(io.StringIO(rendered(bake)))
    kinds = [next(iter(provisioner.items())) for provisioner in template["build"][0]["provisioner"]]
    runs = [(kind, flat(settings["inline"])) for kind, settings in kinds]
    wanted = []
    for layer in bake.layers:
        frozen = f"{sys.executable} -m vmimage.stages.bake.snapshot {layer.script} /w/after-{layer.step_name}.qcow2"
        wanted += [("shell", f"/run/vmimage/run-step {layer.script}"), ("shell-local", frozen)]
    assert runs == [*wanted, ("shell", "/run/vmimage/run-step 99-seal.sh")]


def flat(text: object) -> object:
    """Return a text that the HCL reader put into lists."""
    return flat(text[0]) if isinstance(text, list) else text


def test_guest_is_shut_in_and_the_way_in_is_loopback(bake: BakeStage) -> None:
    text = rendered(bake)
    assert "restrict=on" in text
    assert f"hostfwd=tcp:127.0.0.1:{PORTS.ssh}-:22" in text
    assert "password" not in text


def test_nobody_else_of_this_host_gets_in(bake: BakeStage) -> None:
    lines = {line.strip() for line in rendered(bake).splitlines()}
    assert {'["-monitor", "none"],', '["-vnc", "none"],', '["-nodefaults"],', "disable_vnc  = true"} <= lines
    assert not any(line.startswith('["-sandbox"') for line in lines), "this QEMU or this kernel has none"
    values = packer_values([], Path("/b"), Path("/w"), KEY, "tcg", PORTS, 22000, ("-sandbox", "on,spawn=deny"))
    assert '["-sandbox", "on,spawn=deny"],' in render(PROJECT / "packer" / "image.pkr.hcl.j2", values)


def test_login_key_is_in_memory_only(bake: BakeStage) -> None:
    text = rendered(bake)
    assert base64.b64encode(KEY.public.encode()).decode() in text
    assert "systemd.mount-extra=tmpfs:/root/.ssh:tmpfs" in text


def test_awkward_paths_are_quoted_wherever_they_stand(bake: BakeStage) -> None:
    """What Packer makes of quoted ones, test_render.py asks it."""
    folder = '/a "b" ${c}/%{d}'
    text = rendered(bake, folder)
    assert text.count(hcl_string(folder)[1:-1]) >= 4
    assert text.count(hcl_string(folder)[1:-1]) == text.count("{c}"), "and none is left as it was"


def test_accelerator_decides_the_processor(bake: BakeStage) -> None:
    assert '"host"' in rendered(bake, accelerator="kvm")
    assert '"host"' not in rendered(bake, accelerator="tcg")


@pytest.mark.parametrize(
    ("version", "needed"), [("1.6.6", False), ("1.10.3", False), ("1.11.0", True), ("1.16.2", True), ("2.0.0", True)]
)
def test_plugins_are_required_from_1_11(tmp_path: Path, version: str, needed: bool) -> None:
    assert needs_plugins(version) == needed
    write_plugins_file(PROJECT / "packer", tmp_path, version)
    files = list(tmp_path.iterdir())
    assert bool(files) == needed
    if needed:
        required = hcl2.load(io.StringIO(files[0].read_text()))
        assert "github.com/hashicorp/qemu" in str(required)


def test_one_version_of_the_plugin_is_taken_where_none_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def init(command: str, folder: Path, **_: object) -> Completed:
        asked.append(f"{command} {(folder / 'plugins.pkr.hcl').read_text()}")
        return Completed(argv=(), returncode=0, output="", seconds=0)

    monkeypatch.setattr(packing, "tool_version", lambda name: "1.11.2")
    monkeypatch.setattr(packing, "run", lambda *a, **k: Completed(argv=(), returncode=0, output="", seconds=0))
    monkeypatch.setattr(packing, "packer", init)
    packing.prepare_plugins(tmp_path, asked.append)
    assert asked[0] == "install Packer's qemu plugin 1.1.0 (packer init)"
    assert 'version = "= 1.1.0"' in asked[1]


def test_image_says_what_it_is(bake: BakeStage) -> None:
    facts = bake.release_facts
    assert facts["image"] == "dev-env"
    assert facts["versions"] == plan_of("dev-env").versions
    assert facts["build"] == bake.key


PACKER_OUTPUT = """\
==> qemu.image: Connected to SSH!
    qemu.image: vmimage-step: start 10-system.sh
    qemu.image: vmimage-step: done 10-system.sh
    qemu.image (shell-local): vmimage-step: layer 10-system.sh
    qemu.image: vmimage-step: start 20-kubectl.sh
==> qemu.image: install: cannot stat '/run/vmimage/pins/kubectl'
==> qemu.image: Provisioning step had errors: Running the cleanup provisioner, if present...
==> qemu.image: Deleting output directory...
"""


class NotedLayers(Layers):
    """Notes what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[str, Path]] = []

    def add(self, layer: Layer, file: Path) -> None:
        self.given.append((layer.script, file))


def position_in(folder: Path, bake: BakeStage, said: list[str]) -> tuple[Position, NotedLayers]:
    (folder / "output").mkdir()
    (folder / "output/overlay.qcow2").touch()
    layers = NotedLayers()
    return Position(step_into(said), folder, layers, {layer.script: layer for layer in bake.layers}), layers


def test_failed_step_is_named_with_its_own_output_and_what_came_before_is_a_layer(
    tmp_path: Path, bake: BakeStage
) -> None:
    said: list[str] = []
    position, layers = position_in(tmp_path, bake, said)
    for line in PACKER_OUTPUT.splitlines():
        position.read(line)
    assert said == ["10-system", "20-kubectl"]
    assert layers.given == [("10-system.sh", tmp_path / "output/overlay.qcow2")]
    assert position.file == tmp_path / "after-10-system.qcow2"
    assert position.kept == position.file
    error = failure("dev-env", position, PACKER_OUTPUT, tmp_path / "serial.log")
    assert error.hint.startswith("repeat it: invoke build-image dev-env ")
    assert error.message.splitlines() == [
        "provision/20-kubectl.sh failed:",
        "    install: cannot stat '/run/vmimage/pins/kubectl'",
    ]
    assert error.exit_code == 5


def test_file_of_the_first_step_keeps_a_name_that_packer_does_not_remove(tmp_path: Path, bake: BakeStage) -> None:
    position, _ = position_in(tmp_path, bake, [])
    position.read("    qemu.image: vmimage-step: start 10-system.sh")
    assert position.kept != position.file
    assert position.kept.samefile(position.file)


def test_bakes_at_the_same_time_have_ports_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with own_ports(store) as first, own_ports(store) as second:
        assert not {first.ssh, first.vnc} & {second.ssh, second.vnc}
    with own_ports(store) as again:
        assert again == first


def test_failure_outside_of_a_step_shows_the_console(tmp_path: Path, bake: BakeStage) -> None:
    serial = tmp_path / "serial.log"
    serial.write_text("Kernel panic - not syncing\n")
    position, _ = position_in(tmp_path, bake, [])
    error = failure("dev-env", position, "Timeout waiting for SSH.\n", serial)
    assert "Timeout waiting for SSH." in error.message
    assert "Kernel panic" in error.message


def test_write_that_the_guest_lost_fails_the_bake(tmp_path: Path) -> None:
    serial = tmp_path / "serial.log"
    require_written(serial)
    serial.write_text("[ 1.0] vda: vda1 vda2 vda3\n")
    require_written(serial)
    serial.write_text("[ 1.0] vda: vda1\n[36.1] I/O error, dev vda, sector 1130496 op 0x1:(WRITE) flags 0x4000\n")
    with pytest.raises(BuildError, match="could not write to its disk: I/O error, dev vda, sector 1130496"):
        require_written(serial)


def test_console_that_was_cut_may_hide_a_lost_write(tmp_path: Path) -> None:
    serial = tmp_path / "serial.log"
    serial.write_bytes(CUT + b"[ 1.0] vda: vda1\n")
    with pytest.raises(BuildError, match="may not be seen any more"):
        require_written(serial)
