from __future__ import annotations

import base64
import io
from datetime import date
from pathlib import Path

import hcl2
import pytest

from vmimage import PROJECT
from vmimage.console import Step
from vmimage.packer import needs_plugins, write_plugins_file
from vmimage.plan import Plan, make_plan
from vmimage.render import render
from vmimage.run import run
from vmimage.spec import load_spec
from vmimage.ssh import KeyPair
from vmimage.stages.bake import _failure, _Position, environment, packer_values, release_facts

KEY = KeyPair(private=Path("/w/key"), public="ssh-ed25519 AAAA")


@pytest.fixture
def plan() -> Plan:
    tools = dict.fromkeys(("packer", "qemu-img", "mmdebstrap", "mke2fs", "deflate", "zstandard"), "1.0")
    spec = load_spec(PROJECT / "images.yaml")
    return make_plan(spec, "dev-env", project=PROJECT, tools=tools, today=date(2026, 11, 23))


def rendered(plan: Plan, folder: str = "/w", accelerator: str = "tcg") -> str:
    values = packer_values(plan, Path("/base"), Path(folder), Path("/out"), KEY, accelerator)  # type: ignore[arg-type]
    return render(PROJECT / "packer" / "image.pkr.hcl.j2", values)


def test_template_runs_every_step_in_order_and_seals_last(plan: Plan) -> None:
    template = hcl2.load(io.StringIO(rendered(plan)))
    runs = [provisioner["shell"]["inline"][0] for provisioner in template["build"][0]["provisioner"]]
    runs = [run[0] if isinstance(run, list) else run for run in runs]
    assert runs == [f"/run/vmimage/run-step {step}" for step in plan.steps]
    assert runs[-1].endswith("99-seal.sh")


def test_guest_is_shut_in_and_the_way_in_is_loopback(plan: Plan) -> None:
    text = rendered(plan)
    assert "restrict=on" in text
    assert "hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22" in text
    assert "password" not in text


def test_login_key_is_in_memory_only(plan: Plan) -> None:
    text = rendered(plan)
    assert base64.b64encode(KEY.public.encode()).decode() in text
    assert "systemd.mount-extra=tmpfs:/root/.ssh:tmpfs" in text


def test_awkward_paths_stay_one_string(plan: Plan) -> None:
    folder = '/a "b", ${c}/%{d}'
    template = hcl2.load(io.StringIO(rendered(plan, folder)))
    (source,) = (source["qemu"]["image"] for source in template["source"])
    text = str(source["iso_url"])
    assert '"b"' in text.replace("\\", "")


def test_accelerator_decides_the_processor(plan: Plan) -> None:
    assert '"host"' in rendered(plan, accelerator="kvm")
    assert '"host"' not in rendered(plan, accelerator="tcg")


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


def test_image_says_what_it_is(plan: Plan) -> None:
    facts = release_facts(plan)
    assert facts["image"] == "dev-env"
    assert facts["versions"] == plan.versions
    assert facts["build"] == plan.bake_stage.key


def test_environment_of_the_steps_is_shell(plan: Plan) -> None:
    script = environment(plan) + 'echo "$PINS $KUBECTL_VERSION $K3S_AIRGAP_IMAGES_VERSION"'
    shown = run(["sh", "-euc", script]).output
    assert shown == f"/run/vmimage/pins {plan.versions['kubectl']} {plan.versions['k3s']}"


PACKER_OUTPUT = """\
==> qemu.image: Connected to SSH!
    qemu.image: vmimage-step: start 10-system.sh
    qemu.image: vmimage-step: done 10-system.sh
    qemu.image: vmimage-step: start 20-kubectl.sh
==> qemu.image: install: cannot stat '/run/vmimage/pins/kubectl'
==> qemu.image: Provisioning step had errors: Running the cleanup provisioner, if present...
==> qemu.image: Deleting output directory...
"""


def test_failed_step_is_named_with_its_own_output(tmp_path: Path) -> None:
    said: list[str] = []
    position = _Position(Step(lambda event, text: said.append(text), None, None))
    for line in PACKER_OUTPUT.splitlines():
        position.read(line)
    assert said == ["10-system", "20-kubectl"]
    error = _failure(position, PACKER_OUTPUT, tmp_path / "serial.log")
    assert error.message.splitlines() == [
        "provision/20-kubectl.sh failed:",
        "    install: cannot stat '/run/vmimage/pins/kubectl'",
    ]
    assert error.exit_code == 5


def test_failure_outside_of_a_step_shows_the_console(tmp_path: Path) -> None:
    serial = tmp_path / "serial.log"
    serial.write_text("Kernel panic - not syncing\n")
    position = _Position(Step(lambda event, text: None, None, None))
    error = _failure(position, "Timeout waiting for SSH.\n", serial)
    assert "Timeout waiting for SSH." in error.message
    assert "Kernel panic" in error.message
