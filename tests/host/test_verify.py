from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from tests.tools import context_in, plan_of
from vmimage.cache.store import Store
from vmimage.commands.verify_file import verify_file
from vmimage.disk.raw import RawDisk
from vmimage.host import Firmware
from vmimage.pipeline import stages_of, the_stage
from vmimage.spec.model import AllFormats
from vmimage.stages.base import write_disk
from vmimage.stages.export import ExportStage
from vmimage.stages.verify import checks
from vmimage.stages.verify.checks import Check, dealt_tests, known_seconds, note_seconds, read_junit
from vmimage.stages.verify.machine import Identities
from vmimage.stages.verify.matrix import boots
from vmimage.stages.verify.stage import VerifyStage
from vmimage.stages.verify.subject import File, Subject, image_facts
from vmimage.stages.verify.verdict import verify
from vmimage.util.console import Console, Step
from vmimage.util.errors import VerifyError
from vmimage.util.run import run
from vmimage.util.settings import options
from vmimage.vm.clone import SSH_SECONDS
from vmimage.vm.machine import Hardware

FACTS = {"components": ["system", "kubectl", "helm", "sshfs", "bootloader"]}

JUNIT = """<testsuites><testsuite name="pytest">
<testcase name="good" time="1"/>
<testcase name="left out" time="1"><skipped message="why"/></testcase>
<testcase name="bad" time="1"><failure message="m">host = x
E   AssertionError: assert 1 == 2
tests/image/test_x.py:3: AssertionError</failure></testcase>
<testcase name="broken" time="1"><error message="fixture failed"/></testcase>
</testsuite></testsuites>"""


def test_junit_is_read(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    check = Check(name="m")
    read_junit(tmp_path / "junit.xml", check)
    assert (check.tests, check.skipped, check.passed) == (4, 1, False)
    assert check.failures == ["bad:\n    E   AssertionError: assert 1 == 2", "broken:\n    fixture failed"]


def test_junit_in_which_a_guest_says_too_much_or_breaks_it_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "junit.xml"
    for text, why in (("<testsuites>", "cannot be read"), ("<a>" + "x" * 2000 + "</a>", "more than 0 MiB")):
        path.write_text(text)
        monkeypatch.setattr("vmimage.stages.verify.checks.MOST_JUNIT_BYTES", 1000)
        check = Check(name="x", tests=1)
        read_junit(path, check)
        assert why in check.failures[0]
        assert not check.passed
    path.write_text(f'<a><testcase name="t"><failure>{"y" * 900}</failure></testcase></a>')
    monkeypatch.setattr("vmimage.stages.verify.checks.MOST_LINE", 50)
    check = Check(name="x")
    read_junit(path, check)
    assert check.failures == ["t:\n    " + "y" * 50]


def test_no_junit_is_no_pass(tmp_path: Path) -> None:
    check = Check(name="m")
    read_junit(tmp_path / "none.xml", check)
    assert not check.passed


def test_every_check_runs_in_one_machine_and_those_of_the_machine_in_each() -> None:
    dealt = [dealt_tests(FACTS, i, 2, {}) for i in range(2)]
    assert [hand[0] for hand in dealt] == ["test_machine.py"] * 2
    others = [name for hand in dealt for name in hand[1:]]
    expected = {f"test_{component}.py" for component in FACTS["components"]} | {"test_system_networks.py"}
    assert sorted(others) == sorted(expected)


def test_checks_are_dealt_by_size_or_time_and_run_in_the_order_of_the_components(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "IMAGE_TESTS", tmp_path)
    for name, size in {"a": 40, "b": 50, "c": 30, "c_long": 55, "d": 1}.items():
        (tmp_path / f"test_{name}.py").write_text("#" * size)
    dealt = [dealt_tests({"components": ["a", "b", "c", "d"]}, i, 2, {}) for i in range(2)]
    assert dealt[0] == ["test_machine.py", "test_c.py", "test_c_long.py", "test_d.py"]
    assert dealt[1] == ["test_machine.py", "test_a.py", "test_b.py"]
    # Or by the time that they took before; one that is new, by its size at their pace.
    pace = tmp_path / "pace.json"
    assert known_seconds(pace) == {}
    (tmp_path / "work/m").mkdir(parents=True)
    cases = "".join(f'<testcase classname="tests.image.test_{name}" time="{seconds}"/>' for name, seconds in
                    (("a", 1), ("a", 99), ("b", 1), ("c", 1), ("c_long", 1)))  # fmt: skip
    (tmp_path / "work/m/junit.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    note_seconds(pace, tmp_path / "work")
    assert known_seconds(pace) == {"test_a.py": 100, "test_b.py": 1, "test_c.py": 1, "test_c_long.py": 1}
    dealt = [dealt_tests({"components": ["a", "b", "c", "d"]}, i, 2, known_seconds(pace)) for i in range(2)]
    assert dealt[0] == ["test_machine.py", "test_a.py"]
    pace.write_text("[")
    assert known_seconds(pace) == {}


def test_component_without_checks_is_refused() -> None:
    with pytest.raises(VerifyError, match="the component other,"):
        dealt_tests({"components": ["system", "other"]}, 0, 2, {})


@pytest.fixture
def make_disk(tmp_path: Path) -> Callable[[str | None], Path]:
    def make(release: str | None) -> Path:
        tree = tmp_path / "tree"
        (tree / "etc/vmimage").mkdir(parents=True)
        if release is not None:
            (tree / "etc/vmimage/release.json").write_text(release)
        write_disk(tmp_path / "disk.raw", tree)
        return tmp_path / "disk.raw"

    return make


@pytest.mark.parametrize("release", [None, "", "[]", '{"components": []}', '{"components": {}, "versions": {}}'])
def test_image_that_does_not_say_what_it_is(
    make_disk: Callable[[str | None], Path], tmp_path: Path, release: str | None
) -> None:
    with pytest.raises(VerifyError, match=r"release\.json"):
        image_facts(RawDisk(make_disk(release)), tmp_path)


def test_image_that_says_what_it_is(make_disk: Callable[[str | None], Path], tmp_path: Path) -> None:
    disk = make_disk('{"image": "x", "components": ["system"], "versions": {}}')
    assert image_facts(RawDisk(disk), tmp_path)["components"] == ["system"]


def subject(file: Path, recorded: str = "") -> Subject:
    facts = {"image": "x", "components": [], "versions": {}}
    files = [File(kind="qcow2", path=file, recorded_sha256=recorded)]
    return Subject(files=files, boots=boots(["qcow2"], full=False), facts=facts, memory="512 MiB", cpus=1)


def quiet() -> Step:
    return Step(lambda event, text: None, None, None)


def test_file_that_is_not_what_its_manifest_says_is_not_even_booted(tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").write_text("changed")
    with pytest.raises(VerifyError, match="is not what its manifest says") as refused:
        verify(subject(tmp_path / "a.qcow2", recorded="0" * 64), tmp_path, "tcg", quiet())
    assert "0" * 64 in refused.value.message
    assert refused.value.exit_code == 6


def test_guest_that_does_not_come_up_leaves_its_console_and_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real guest, whose boot sector says a word on the serial port and halts."""
    monkeypatch.setitem(SSH_SECONDS, "tcg", 6.0)
    code = b"".join(b"\xba\xf8\x03\xb0" + bytes([letter]) + b"\xee" for letter in b"PANIC\n") + b"\xfa\xf4"
    raw = tmp_path / "disk.raw"
    raw.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, tmp_path / "a.qcow2"])
    work, evidence = tmp_path / "work", tmp_path / "evidence"
    work.mkdir()
    with pytest.raises(VerifyError) as refused:
        verify(subject(tmp_path / "a.qcow2"), work, "tcg", quiet(), evidence=evidence, keep=tmp_path / "kept")
    assert re.search(r"qcow2-virtio-bios: the machine did not answer ssh within \d+ s", refused.value.message)
    assert "its console ends with:\n    PANIC" in refused.value.message
    assert "qcow2-virtio-uefi" in refused.value.message
    for machine in ("qcow2-virtio-bios", "qcow2-virtio-uefi"):
        assert (evidence / machine / "screen.png").read_bytes().startswith(b"\x89PNG")
        assert not list((evidence / machine).glob("id_*")), "no private key stays"
        assert not list((evidence / machine).glob("*.qcow2"))
    assert '"passed": false' in (evidence / "verdict.json").read_text()
    # What is kept starts again, by itself: its image lies beside it.
    (tmp_path / "a.qcow2").unlink()
    shutil.rmtree(work)
    script = tmp_path / "kept/qcow2-virtio-bios/enter"
    assert f"look inside: {script}" in refused.value.hint
    with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        while b"PANIC" not in (line := process.stdout.readline()):
            assert line, "it ended without a word"
        process.kill()


def test_session_with_a_stand_in_that_breaks_off_is_a_failed_check_and_its_evidence_stays(
    make_disk: Callable[[str | None], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def breaks_off(hardware: Hardware, **_: Path) -> Iterator[None]:
        raise paramiko.SSHException(f"{hardware.firmware} is gone")
        yield

    monkeypatch.setattr("vmimage.vm.clone.start", breaks_off)
    raw = make_disk('{"image": "x", "components": [], "versions": {}}')
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, tmp_path / "a.qcow2"])
    console = Console(log_dir=tmp_path / "log")
    chosen = options({"VMIMAGE_CACHE": str(tmp_path / "cache")}, accelerator="tcg")
    with pytest.raises(VerifyError) as refused:
        verify_file(tmp_path / "a.qcow2", chosen, Store(chosen.cache), console)
    assert "qcow2-virtio-bios: bios is gone" in refused.value.message
    assert "qcow2-virtio-uefi: uefi is gone" in refused.value.message
    assert '"passed": false' in (tmp_path / "log/verify/verdict.json").read_text()
    assert f"verdict, consoles and screenshots: {tmp_path}/log/verify" in refused.value.hint


def test_firmware_counts_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = the_stage(stages_of(plan_of("toolbox"), context_in(tmp_path)), VerifyStage)
    firmware = Firmware(code=tmp_path / "code.fd", variables=tmp_path / "vars.fd")
    monkeypatch.setattr("vmimage.host.find_uefi", lambda: firmware)
    monkeypatch.setattr(VerifyStage, "build_key", "ssh-ed25519 AAAA")
    monkeypatch.setattr(ExportStage, "exported", {"qcow2": {"sha256": "0" * 64}})
    seen = []
    for code, variables in (("a", "a"), ("b", "a"), ("b", "b")):
        firmware.code.write_text(code)
        firmware.variables.write_text(variables)
        seen.append(stage.key)
    assert len(set(seen)) == 3


def test_verdict_depends_on_the_bytes_and_not_on_how_they_came_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VerifyStage, "build_key", "ssh-ed25519 AAAA")
    stage = the_stage(stages_of(plan_of("toolbox"), context_in(tmp_path)), VerifyStage)
    keys = []
    for digest, level in (("0", 5), ("0", 6), ("1", 6)):
        monkeypatch.setattr(ExportStage, "exported", {"ova": {"sha256": digest * 64}})
        export = replace(stage.export, formats=AllFormats.model_validate({"ova": {"level": level}}))
        keys.append(replace(stage, after=export).key)
    assert keys[0] == keys[1] != keys[2]


def test_file_that_its_importers_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "a.ova").write_bytes(b"no archive")
    archive = Subject(
        files=[File(kind="ova", path=tmp_path / "a.ova")],
        boots=boots(["ova"], full=False),
        facts={"image": "x", "components": [], "versions": {}},
        memory="512 MiB",
        cpus=1,
    )
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(VerifyError, match=r"a\.ova is refused: it is no readable tar archive"):
        verify(archive, work, "tcg", quiet())


def known(machine: str, key: str = "", ca: str = "") -> dict[str, list[str]]:
    keys = [key or f"ed {machine}", f"ec {machine}"]
    return {"machine-id": [machine], "host-keys": keys, "cluster-ca": [ca] * bool(ca)}


def test_clones_share_nothing() -> None:
    identities = Identities()
    for machine in ("a", "b", "c"):
        identities.add(machine, known(machine))
    assert list(identities.shared()) == []


def test_clones_that_share_something_are_named_whenever_they_came_up() -> None:
    identities = Identities()
    for machine, key, ca in (("a", "ed x", "1"), ("b", "", "2"), ("c", "ed x", "")):
        identities.add(machine, known(machine, key, ca))
    assert list(identities.shared()) == ["host-keys is the same in a, c", "cluster-ca: c has none"]
    identities.add("d", {"machine-id": [], "host-keys": [], "cluster-ca": ["2"]})
    assert "machine-id: d has none" in list(identities.shared())


def test_verification_ends_at_once_also_while_it_reads_a_large_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is so large that it would be read for hours; a machine that is due starts a process all the same."""
    reading = threading.Event()

    def endless(fd: int) -> Iterator[tuple[int, int]]:
        reading.set()
        yield 0, 1 << 50

    def machine(*_: object) -> Check:
        reading.wait()
        with contextlib.suppress(VerifyError):
            run(["sleep", "600"], error=VerifyError)
        with contextlib.suppress(VerifyError):
            run(["sleep", "601"], error=VerifyError)
        return Check(name="x")

    monkeypatch.setattr("vmimage.disk.raw.extents", endless)
    monkeypatch.setattr("vmimage.stages.verify.verdict.check_machine", machine)
    run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "a.qcow2", "1M"])
    work = tmp_path / "work"
    work.mkdir()

    def interrupt() -> None:
        reading.wait()
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        verify(subject(tmp_path / "a.qcow2"), work, "tcg", quiet())
    assert time.monotonic() - started < 3
