"""What the guest's command prints, takes and waits for: what is decided without a program."""

from __future__ import annotations

import ast
import errno
import io
import sys
from contextlib import nullcontext
from pathlib import Path

import dev_env
import pytest
from dev_env import Failure, bounds, cli, console, printable, state
from hypothesis import example, given

from tests.any_text import any_text
from vmimage.util import printable as of_the_host

SOURCES = sorted(Path(dev_env.__file__).parent.glob("*.py"))
HOSTILE = "\x1b]52;c;eA==\x07 \x9b31m \x7f \r back \u202e turned \udcff \u2066 end"


@given(any_text())
@example(HOSTILE)
@example("".join(map(chr, range(0x300))))
@example("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ud800\udcff\U000e0001")
def test_guest_and_host_show_alike(text: str) -> None:
    assert printable.printable(text) == of_the_host.printable(text)
    assert not [each for each in printable.printable(text) if not each.isprintable() and each not in "\n\t\u00a0"]


def test_all_that_is_printed_goes_through_one_module() -> None:
    for source in SOURCES:
        calls = [node.func for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
        names = {call.id for call in calls if isinstance(call, ast.Name)}
        streams = {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)}
        assert "print" not in names, source
        assert source.stem == "console" or not [each for each in streams if each.startswith("sys.std")
                                                and each.endswith(".write")], source  # fmt: skip


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(HOSTILE)
    console.answer(HOSTILE)
    console.answer_whole(HOSTILE)
    console.answer(state.table([[HOSTILE, "a\nb"], ["x", "y"]]))
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x9b", "\x07", "\x7f", "\r", "\u202e", "\udcff", "\u2066"} & set(out + err)
    assert r"\x1b]52;c;eA==\x07 \x9b31m \x7f \x0d back \u202e turned \xff \u2066 end" in err


def test_failure_of_a_command_is_shown_the_same_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> list[list[str]]:
        raise Failure(HOSTILE, HOSTILE)

    monkeypatch.setattr(state, "services", fails)
    assert cli.main(["services"]) == 1
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setattr(state, "services", lambda: (_ for _ in ()).throw(OSError(HOSTILE)))
    assert cli.main(["services"]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_error_of_this_program_is_shown_the_same_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.excepthook", sys.__excepthook__)
    console.prepare()
    sys.excepthook(KeyError, KeyError(HOSTILE), None)
    sys.excepthook(ValueError, ValueError(HOSTILE), None)
    err = capsys.readouterr().err
    assert "ValueError: " in err
    assert "\x1b" not in err


def test_output_has_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a" * 1_000_000 + "the reason")
    console.answer("b" * 10_000_000)
    out, err = capsys.readouterr()
    assert len(err) < 20_000
    assert err.endswith("the reason\n")
    assert "984010 characters" in err
    assert len(out) < 1_100_000
    assert len(state.table([["c" * 100_000, "d"]])) < 1200


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_a_terminal_lacks_are_no_error(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr("sys.stderr", stream)
    console.prepare()
    console.say("größe … ✔ \udcff")
    assert rb"\xff" in written.getvalue()


@pytest.mark.parametrize(
    ("number", "is_error"),
    [(errno.ENOSPC, True), (errno.EPIPE, False), (errno.EIO, False)],
    ids=["full", "pipe", "tty"],
)
def test_answer_that_finds_no_room_is_an_error(number: int, is_error: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise OSError(number, "it is full or gone")

    monkeypatch.setattr("sys.stdout", Broken())
    monkeypatch.setattr("sys.stderr", Broken())
    console.say("what goes on is told to nobody, and that does not end what is done")
    with pytest.raises(OSError, match="full") if is_error else nullcontext():
        console.answer("an export")


def test_streams_and_files_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert b"".join(bounds.chunks(io.BytesIO(b"abc"), 3, 1, "it")) == b"abc"
    with pytest.raises(Failure, match="it has more than 1 KiB"):
        list(bounds.chunks(io.BytesIO(bytes(1025)), 1024, 1, "it"))
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))

    class Drip(io.BytesIO):
        def read1(self, _size: int | None = -1, /) -> bytes:
            return b"x"

    with pytest.raises(Failure, match="did not come within 30 s"):
        list(bounds.chunks(Drip(), 1 << 30, 30, "it"))
    monkeypatch.undo()
    (tmp_path / "large").write_bytes(bytes(1025))
    with pytest.raises(Failure, match="has more than 1 KiB"):
        bounds.read_text(tmp_path / "large", 1024)
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name in ("bytes", "none", "a\0b", "."):
        with pytest.raises(Failure):
            bounds.read_text(tmp_path / name)


@pytest.mark.parametrize("name", ["team.yaml", "team.charts"])
def test_export_replaces_no_file_and_no_charts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dev_env.charts.exported", lambda _: ("charts: {}\n", []))
    output = tmp_path / "team.yaml"
    (tmp_path / name).write_text("mine\n") if name == "team.yaml" else (tmp_path / name).mkdir()
    assert cli.main(["export", "--output", str(output)]) == 1
    assert f"{tmp_path / name} exists" in capsys.readouterr().err
    assert not output.exists() or output.read_text() == "mine\n"
    assert cli.main(["export", "--output", str(output), "--force"]) == 0
    assert output.read_text() == "charts: {}\n"
