from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from tests.tools import context_in, plan_of
from vmimage import host
from vmimage.plan import Source
from vmimage.stages.base import base_stage, mmdebstrap_command
from vmimage.stages.stage import planned
from vmimage.util.console import Console
from vmimage.util.masking import masked, masked_argument, masked_data
from vmimage.util.memo import Memo
from vmimage.util.printable import printable
from vmimage.util.run import Completed
from vmimage.util.settings import options

HIDDEN = "t0psecret"
URLS = [
    (f"https://ci:{HIDDEN}@m.example/debian", "https://***@m.example/debian"),
    (f"HTTPS://{HIDDEN}@m.example:8443/", "HTTPS://***@m.example:8443/"),
    (f"tor+http://ci:{HIDDEN}%40x@m.example", "tor+http://***@m.example"),
    (f"https://ci:a@{HIDDEN}@m.example/x", "https://***@m.example/x"),
    (f"https://ci:a/{HIDDEN}@m.example/x", "https://***@m.example/x"),
    (f"https://ci:a?{HIDDEN}@m.example/x", "https://***@m.example/x"),
    (f"https://ci:a#{HIDDEN}@m.example/x", "https://***@m.example/x"),
    (f"https://ci:1{HIDDEN}@[::1]:80/x", "https://***@[::1]:80/x"),
    (f"https://m.example/x?token={HIDDEN}&y", "https://m.example/x?***"),
    (f"https://ci:{HIDDEN}@m.example/x?sig={HIDDEN}", "https://***@m.example/x?***"),
    (f"deb [trusted=yes] https://ci:{HIDDEN}@m/a trixie main; deb http://x:{HIDDEN}@n b c",
     "deb [trusted=yes] https://***@m/a trixie main; deb http://***@n b c"),
    (f"http_proxy=ci:{HIDDEN}@proxy:3128 and", "http_proxy=***@proxy:3128 and"),
    (f"Max retries exceeded with url: /x?token={HIDDEN} (Caused by X)",
     "Max retries exceeded with url: /x?*** (Caused by X)"),
    (f"Failed to parse: 'https://ci:it's{HIDDEN}@m/x'", "Failed to parse: 'https://***@m/x'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), URLS)
def test_credentials_are_hidden(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert masked(shown) == shown
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://registry.example/@scope/tool-1.0.tgz",
        "http://127.0.0.1:8080/a and http://[::1]:9/b, user@example.org",
        "no machine answers ssh at dev@127.0.0.1:9",
        "git@github.com:owner/name.git",
        "did you mean …? SHA256:abc",
        "deb http://debian.example/debian trixie main",
        "12:30:01 base   fetch a@b",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize("piece", ["a://b:c", "a.", "~", "a:b", "x://x", "with url: ", "a@", "?a", "https://a:/", "%"])
def test_long_texts_take_no_long_time(piece: str) -> None:
    started = time.process_time()
    masked(f"@? {piece * (200_000 // len(piece))} @?")
    assert time.process_time() - started < 2


def test_arguments_are_hidden_even_where_they_are_no_urls() -> None:
    assert masked_argument(f"--mirror=https://ci:a {HIDDEN}@m/x") == "--mirror=https://***@m/x"
    assert masked_data({"a": [f"https://x:{HIDDEN}@h"], "n": 1}) == {"a": ["https://***@h"], "n": 1}


def test_nothing_of_a_run_tells_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("vmimage")
    before = list(logger.handlers)
    console = Console(log_dir=tmp_path / "logs" / "run", json_lines=True)
    url = f"https://ci:{HIDDEN}@m.example/x?token={HIDDEN}"
    try:
        console.event("run", argv=["fetch", f"--mirror={url}"])
        console.say(f"from {url}")
        with console.stage("fetch", url) as step:
            step.now(f"from {url}")
            step.outcome = url
        try:
            raise ValueError(url)
        except ValueError:
            logging.getLogger("vmimage.util.run").exception("$ %s", url)
    finally:
        for handler in set(logger.handlers) - set(before):
            logger.removeHandler(handler)
            handler.close()
    said = capsys.readouterr()
    told = (tmp_path / "logs" / "run" / "run.log").read_text()
    assert "https://***@m.example/x?***" in told
    assert HIDDEN not in told + said.out + said.err
    assert [json.loads(line) for line in said.out.splitlines()]
    assert (tmp_path / "logs" / "run").stat().st_mode & 0o777 == 0o700


def test_keys_and_commands_have_none_and_apt_has_them(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    stages = [
        base_stage(
            plan_of("toolbox", debian_mirrors=[f"deb https://ci:{secret}@m.example/debian trixie main"]), context
        )
        for secret in (HIDDEN, "another")
    ]
    base = stages[0]
    assert base.key == stages[1].key, "a new password is no other base"
    told = json.dumps(base.inputs) + repr(base) + str(planned(base, base.why, None, context.store))
    assert HIDDEN not in told + " ".join(mmdebstrap_command(base, Path("/tree")))
    assert "https://***@m.example/debian" in told
    assert base.sources == (f"deb https://ci:{HIDDEN}@m.example/debian trixie main",)


def test_mirrors_of_the_host_are_not_remembered_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = f"Debian|Debian|https://ci:{HIDDEN}@m/d\nDebian|Debian-Security|https://ci:{HIDDEN}@m/s"
    monkeypatch.setattr(host, "run", lambda *a, **k: Completed(argv=(), returncode=0, output=shown, seconds=0))
    monkeypatch.setattr(host, "_memo", Memo(tmp_path / "host.json"))
    assert HIDDEN in host.debian_mirrors("trixie", None)[0]
    assert not (tmp_path / "host.json").exists()


def test_a_source_shows_none() -> None:
    assert str(Source(kind="url", where=f"https://ci:{HIDDEN}@m/x", members=("a",))) == "https://***@m/x -> a"


def test_builds_of_all_images_hand_them_on_by_their_environment() -> None:
    url = f"https://ci:{HIDDEN}@m"
    chosen = options({"HOME": "/h"}, mirrors=["/srv/my files", url], debian_mirror=f"{url}/debian")
    assert HIDDEN not in " ".join(chosen.arguments)
    again = options({"HOME": "/h", **chosen.environment})
    assert (again.mirrors, again.debian_mirror) == (chosen.mirrors, chosen.debian_mirror)
