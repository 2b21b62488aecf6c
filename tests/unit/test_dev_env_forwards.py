"""Which ports of the host lead into a machine: what the host tells, and what the machine makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dev_env import Failure, cli, forwards, ready, state
from dev_env.bounds import FORWARDS_BYTES
from dev_env.forwards import MOST_PORTS, USUAL, Forwards, parse
from dev_env.names import TCP_RANGE
from hypothesis import given
from hypothesis import strategies as st

from vmimage import PROJECT
from vmimage.util.ports import FORWARDS
from vmimage.vm.forwards import CREDENTIAL, all_forwards, forwards_text, smbios_arguments

FILES = PROJECT / "provision" / "files"
UNITS = FILES / "60-environment/etc/systemd/system"
PORTS = st.integers(min_value=1, max_value=65535)
OTHERS = {22: 2223, 80: 8081, 443: 8444, 6443: 6444}
TAKEN = 31007
SECOND = Forwards({**OTHERS, **{port: port for port in TCP_RANGE if port != TAKEN}}, told=True)


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is noted; there is nothing yet."""
    monkeypatch.setattr(forwards, "NOTED", tmp_path / "forwards")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    (tmp_path / "credentials").mkdir()
    return tmp_path / "forwards"


def tell(noted: Path, told: bytes) -> list[str]:
    """Do what the service does when a machine starts; returns what it reports."""
    (noted.parent / "credentials" / CREDENTIAL).write_bytes(told)
    reported: list[str] = []
    forwards.note(reported.append)
    return reported


@given(st.dictionaries(PORTS, PORTS, min_size=1, max_size=60).filter(lambda each: len({*each.values()}) == len(each)))
def test_what_the_host_tells_is_what_the_machine_reads(told: dict[int, int]) -> None:
    text = forwards_text(told)
    assert parse(text) == told
    # No comma: QEMU would take what follows for another option.
    assert re.fullmatch(r"[0-9= -]+", text)


def test_text_is_short_enough_for_the_largest_range_with_every_second_port_taken() -> None:
    most = {22: 12222, 80: 18080, 443: 18443, 6443: 16443, **{port: port for port in range(31000, 31512, 2)}}
    assert len(forwards_text(most)) < FORWARDS_BYTES // 2


def test_smbios_string_is_a_credential_of_systemd() -> None:
    text = "type=11,value=io.systemd.credential:vmimage.forwards=22=2223 80=8081 31000-31001 31003"
    assert smbios_arguments({80: 8081, 31003: 31003, 31001: 31001, 31000: 31000, 22: 2223}) == ["-smbios", text]


def test_host_and_machine_and_unit_agree() -> None:
    usual = {each.guest: each.host for each in all_forwards(TCP_RANGE).values()}
    assert usual == USUAL
    assert (FORWARDS["ssh"].guest, FORWARDS["http"].guest) == (forwards.SSH, forwards.HTTP)
    assert forwards.CREDENTIAL == CREDENTIAL
    unit = (UNITS / "dev-env-forwards.service").read_text()
    assert f"ImportCredential={CREDENTIAL}\n" in unit
    assert f"RuntimeDirectory={forwards.NOTED.parent.name}\n" in unit
    assert f"Address={forwards.ADDRESS}/" in (FILES / "50-k3s/etc/systemd/network/40-dev-env0.network").read_text()


@pytest.mark.parametrize(
    "text",
    ["", " ", "80=8081 80=8082", "80=8081 443=8081", "31000-31004 31004", "x", "80=", "=80", "80=0", "0=80",
     "080=8080", "80=65536", "65536", "1-65535", "5-4", "80=8080\n", "80=8080  22", "80=8080 ", "80=8080,22=2222",
     "٨٠=8080", "80=99999999999999999999", "-1", "80=8080 \x1b[2J", "1-1025", "{}"],
)  # fmt: skip
def test_odd_text_is_refused(text: str) -> None:
    with pytest.raises(Failure):
        parse(text)


def test_number_of_ports_is_bounded() -> None:
    assert len(parse(f"1-{MOST_PORTS}")) == MOST_PORTS


def test_what_is_told_is_noted_and_read(noted: Path) -> None:
    text = forwards_text(SECOND.ports)
    assert tell(noted, text.encode()) == [f"ports that lead here: {text}"]
    assert noted.read_text() == text
    assert forwards.read() == SECOND
    assert tell(noted, f"{text}\n".encode()) == [f"ports that lead here: {text}"]
    assert noted.read_text() == text


@pytest.mark.parametrize("told", [b"80=8081 x", b"\xff", b"80=8081\0", b"80=8081\n\n", b"1 " * 5000, b"1=1 " * 2000])
def test_odd_text_is_as_if_nothing_was_told(noted: Path, told: bytes) -> None:
    noted.write_text("80=8081")
    (said,) = tell(noted, told)
    assert said.endswith("; the usual ports are shown")
    assert not noted.exists()
    assert forwards.read() == Forwards(USUAL, told=False)


def test_nothing_told_means_the_usual_ports(noted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted.write_text("80=8081")
    reported: list[str] = []
    forwards.note(reported.append)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    forwards.note(reported.append)
    assert reported == ["nobody told which ports lead here; the usual ports are shown"] * 2
    assert forwards.read() == Forwards(USUAL, told=False)


def test_noted_text_that_was_changed_is_not_believed(noted: Path) -> None:
    for text in ("80=8081 \x1b[2J", "x" * 5000):
        noted.write_text(text)
        assert forwards.read() == Forwards(USUAL, told=False)


def service(name: str, port: int, **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "default"}
    return {"metadata": meta, "spec": {"selector": {"app": name}, "ports": [{"port": port, **spec}]}}


SERVICES = [service("web", 80), service("db", 5432, nodePort=TAKEN), service("mq", 5672, nodePort=31008)]


def shown(found: Forwards) -> tuple[list[str], list[str]]:
    rows, notes = state.listed(SERVICES, [], found)
    return [row[2] for row in rows[1:]], notes


def test_services_are_shown_where_they_are() -> None:
    addresses, notes = shown(Forwards({**SECOND.ports, TAKEN: 32007}, told=True))
    assert addresses == [
        "http://web.localhost:8081",
        "https://web.localhost:8444",
        "localhost:32007 (port 5432)",
        "localhost:31008 (port 5672)",
    ]
    assert notes == []


def test_port_that_was_taken_is_not_shown_as_an_address() -> None:
    addresses, (note,) = shown(SECOND)
    assert addresses[2:] == ["31007 is not forwarded (port 5432)", "localhost:31008 (port 5672)"]
    assert "Not forwarded to this machine: 31007." in note
    assert "ssh -N -p 2223 -L N:203.0.113.254:31007 dev@localhost" in note


def test_machine_without_http_shows_no_address() -> None:
    addresses, (note,) = shown(Forwards({TAKEN: TAKEN, 31008: 31008}, told=True))
    assert addresses[:2] == ["http to web.localhost is not forwarded", "https to web.localhost is not forwarded"]
    assert "Not forwarded to this machine: 80, 443." in note


def test_usual_ports_come_with_the_remark_that_they_may_differ() -> None:
    addresses, (note,) = shown(Forwards(USUAL, told=False))
    assert addresses[0] == "http://web.localhost:8080"
    assert "if others were chosen" in note


def test_summary_names_the_ports() -> None:
    summary = "ports on your computer: 2223 ssh, 8081 http, 8444 https, 6444 Kubernetes, 19 of 20 for other TCP"
    assert forwards.summary(SECOND) == summary
    assert forwards.summary(Forwards(USUAL, told=False)).endswith(
        ", 20 of 20 for other TCP (as usual; yours may differ)"
    )
    assert "8081 http, no ssh, no https, no Kubernetes, 0 of 20" in forwards.summary(Forwards({80: 8081}, told=True))


def test_services_command_says_the_remark_once(
    noted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Answers:
        def items(self, kind: str) -> list[dict[str, Any]]:
            return {"Service": SERVICES, "EndpointSlice": []}[kind]

    monkeypatch.setattr(state, "Api", Answers)
    assert cli.main(["services"]) == 0
    captured = capsys.readouterr()
    assert "http://web.localhost:8080" in captured.out
    assert captured.err.count("usual ports") == 1
    tell(noted, forwards_text(SECOND.ports).encode())
    assert cli.main(["services"]) == 0
    captured = capsys.readouterr()
    assert "http://web.localhost:8081" in captured.out
    assert "usual" not in captured.err


@pytest.mark.parametrize(
    ("told", "said", "remark"),
    [(b"22=2223", "invoke share ~/src --ssh-port 2223 ", False), (b"22=2222", "invoke share ~/src  ", False),
     (b"", "invoke share ~/src  ", True)],
)  # fmt: skip
def test_share_names_the_port_of_this_machine(
    noted: Path, capsys: pytest.CaptureFixture[str], told: bytes, said: str, remark: bool
) -> None:
    tell(noted, told)
    assert cli.main(["share"]) == 0
    captured = capsys.readouterr()
    assert said in captured.out
    assert ("add --ssh-port PORT" in captured.err) == remark


def test_console_names_the_ports_when_the_machine_is_ready(
    noted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reached: Callable[..., dict[str, float]] = lambda *_: {"cluster": 1.0}  # noqa: E731
    monkeypatch.setattr(ready, "wait", reached)
    monkeypatch.setattr(ready, "READY", noted.parent / "ready.json")
    tell(noted, b"22=2223 80=8081")
    assert cli.main(["wait"]) == 0
    assert "\nports on your computer: 2223 ssh, 8081 http, no https" in capsys.readouterr().out


def test_profiles_name_no_port() -> None:
    """Their first lines are shown to users, and know nothing of forwards."""
    texts = [path.read_text() for path in (FILES / "60-environment/usr/local/share/dev-env/profiles").glob("*.yaml")]
    assert texts
    assert [text for text in texts if re.search(r"localhost:\d", text)] == []
