from __future__ import annotations

from pathlib import Path

import pytest

from vmimage.util.errors import InputError
from vmimage.vm import accelerator
from vmimage.vm.accelerator import (
    acceleration,
    emulates_in_parallel,
    find_accelerator,
    machine_cpus,
    machines_at_once,
    probe_accelerator,
    probe_passed,
)


def test_emulation_runs_the_probe() -> None:
    assert probe_passed(probe_accelerator("tcg"))


def test_probe_notices_guest_code_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    halt = b"\xfa\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa"
    monkeypatch.setattr(accelerator, "PROBE_SECTOR", halt)
    monkeypatch.setattr(accelerator, "PROBE_SECONDS", 1.0)
    assert not probe_passed(probe_accelerator("tcg"))


def test_accelerator_that_hangs_is_passed_over_and_the_answer_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def probe(name: str) -> str:
        asked.append(name)
        return name

    monkeypatch.setattr(accelerator, "probe_accelerator", probe)
    monkeypatch.setattr(accelerator, "probe_passed", lambda done: done == "tcg")
    monkeypatch.setattr("os.access", lambda *args: True)
    state = tmp_path / "accelerator.json"
    assert find_accelerator(state) == "tcg"
    assert find_accelerator(state) == "tcg"
    assert asked == ["kvm", "tcg"]
    state.write_text(state.read_text().replace("true", "false"))
    assert find_accelerator(state) == "tcg"
    assert asked == ["kvm", "tcg"] * 2, "another host is probed anew"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"subject": 1}', '"x"'])
def test_damaged_memory_of_the_accelerator_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(accelerator, "probe_accelerator", lambda name: name)
    monkeypatch.setattr(accelerator, "probe_passed", lambda done: done == "tcg")
    state = tmp_path / "accelerator.json"
    state.write_text(text)
    assert find_accelerator(state, "tcg") == "tcg"
    assert find_accelerator(state) == "tcg"


def test_override(tmp_path: Path) -> None:
    assert find_accelerator(tmp_path / "none", "kvm") == "kvm"
    with pytest.raises(InputError, match="hvf"):
        find_accelerator(tmp_path / "none", "hvf")


@pytest.mark.parametrize(
    ("qemu", "processor", "parallel"),
    [("7.2.22", "x86_64", False), ("8.0.5", "x86_64", False), ("8.1.0", "x86_64", True), ("10.0.13", "aarch64", False)],
)
def test_processors_are_emulated_at_the_same_time_where_qemu_does_it_right(
    monkeypatch: pytest.MonkeyPatch, qemu: str, processor: str, parallel: bool
) -> None:
    monkeypatch.setattr(accelerator, "tool_version", lambda name: qemu)
    monkeypatch.setattr("platform.machine", lambda: processor)
    assert emulates_in_parallel() == parallel
    assert acceleration("tcg") == ("tcg,thread=multi" if parallel else "tcg,thread=single")
    assert acceleration("kvm") == "kvm"


@pytest.mark.parametrize(
    ("parallel", "host_cpus", "cpus", "at_once"),
    [(False, 16, 1, 2), (True, 1, 1, 1), (True, 2, 2, 1), (True, 3, 2, 1), (True, 16, 2, 2)],
)
def test_emulated_machines_share_the_processors(
    monkeypatch: pytest.MonkeyPatch, parallel: bool, host_cpus: int, cpus: int, at_once: int
) -> None:
    monkeypatch.setattr(accelerator, "emulates_in_parallel", lambda: parallel)
    monkeypatch.setattr("os.cpu_count", lambda: host_cpus)
    assert machine_cpus(2, "tcg") == cpus
    assert machines_at_once(2, "tcg", most=2) == at_once
    assert machine_cpus(2, "kvm") == machines_at_once(2, "kvm", most=2) == 2
