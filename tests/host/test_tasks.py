"""The command line as users meet it: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sandbox import Done, Sandbox
from tests.tools import released
from tests.upstream import upstream
from vmimage import PROJECT

TASKS = [
    "bench",
    "build-image",
    "bundle",
    "bundle-inputs",
    "cache",
    "clean",
    "diff",
    "doctor",
    "fetch",
    "fuzz",
    "kubeconfig",
    "lint",
    "list",
    "lock",
    "plan",
]
TASKS += ["rebuild", "run", "schema", "seed", "share", "sign", "size", "test", "update", "verify"]


@pytest.fixture
def here(tmp_path: Path) -> Sandbox:
    """The project itself, with a cache and a dist/ of its own."""
    return Sandbox(PROJECT, tmp_path / "cache", tmp_path / "dist", {"VMIMAGE_ACCELERATOR": "tcg"})


def test_every_task_has_one_line_of_help(here: Sandbox) -> None:
    lines = here.invoke("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == TASKS


def test_readme_names_every_task() -> None:
    readme = (PROJECT / "README.md").read_text()
    assert not [name for name in TASKS if f"invoke {name}" not in readme]


def test_list_answers_on_standard_output(here: Sandbox) -> None:
    done = here.invoke("list")
    assert done.stdout.splitlines() == [
        "toolbox: Debian 13 with kubectl, helm and sshfs",
        "dev-env (default): toolbox plus a Kubernetes cluster (k3s)",
    ]
    assert done.stderr == ""


def test_plan_does_nothing_and_the_image_may_be_left_out(here: Sandbox) -> None:
    default, named = here.invoke("plan"), here.invoke("plan", "dev-env")
    assert default.returncode == 0
    assert default.stdout == named.stdout
    assert [line.split()[0] for line in named.stdout.splitlines()] == [
        *["fetch"] * 4, "base", *["layer"] * 7, "bake", "export", "verify", "release",
    ]  # fmt: skip
    assert not list((here.cache / "files").iterdir())
    assert not here.dist.exists()


def test_a_reader_that_has_seen_enough_is_no_error(here: Sandbox) -> None:
    process = here.start("plan")
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_plan_for_machines(here: Sandbox) -> None:
    done = here.invoke("plan", "toolbox", "--json")
    assert {event["stage"] for event in done.events if event["event"] == "plan"} >= {"fetch", "bake", "release"}


WRONG: list[tuple[list[str], int, str]] = [
    (["plan", "tolbox"], 2, "images.yaml has no image 'tolbox' (did you mean 'toolbox'?)"),
    (["build-image", "toolbox", "--deb-mirror", "x"], 2, "--deb-mirror 'x' is neither a URL nor"),
    (["build-image", "toolbox", "--accelerator", "hvf"], 2, "--accelerator hvf: unknown"),
    (["verify", "/none.qcow2"], 2, "there is no file /none.qcow2"),
    (["run", "toolbox", "--firmware", "efi"], 2, "--firmware efi: not with --as kvm"),
    (["run", "toolbox", "--as", "xen"], 2, "--as xen: unknown"),
    (["run", "toolbox", "--as", "hyperv", "--firmware", "uefi"], 2, "--firmware uefi: not with --as hyperv"),
    (["verify", "images.yaml"], 2, "images.yaml has no known format"),
    (["build-image", "toolbox", "--matrix", "big"], 2, "--matrix big: unknown"),
    (["run", "toolbox"], 2, "holds no release latest of toolbox"),
    (["fetch", "toolbox", "--mirror", "x", "y"], 1, "No idea what 'y' is!"),
    (["kubeconfig", "--ssh-port", "9"], 3, "no machine answers ssh at dev@127.0.0.1:9"),
    (["bench", "speed"], 2, "there is no benchmark speed"),
    (["bench", "build", "--runs", "0"], 2, "--runs 0: nothing would be measured"),
    (["bench", "build", "--output", "/none/b.json"], 2, "--output /none/b.json: there is no such directory"),
    (["share", "/none"], 2, "there is no directory /none"),
    (["share", "tests", "--sync", "--notify"], 2, "--sync copies"),
    (["share", "tests", "--exclude", "x"], 2, "--exclude is for --sync"),
    (["share", "tests", "--sync", "--exclude", "!"], 2, "--exclude !: no pattern"),
    (["share", "tests", "--ssh-port", "9"], 3, "no machine answers ssh at dev@127.0.0.1:9"),
    (["share", "tests", "--host-key", "MD5:00"], 2, "--host-key MD5:00: no fingerprint"),
    (["kubeconfig", "--host-key", ""], 2, "--host-key : no fingerprint"),
    (["size", "toolbox"], 2, "holds no release latest of toolbox"),
    (["size", "--output", "a.png"], 2, "a.png: the picture is an SVG"),
    (["update", "kubctl", "helm"], 2, "images.yaml has no pin 'kubctl' (did you mean 'kubectl'?)"),
    (["update", "--check", "helm", "nohelm"], 2, "images.yaml has no pin 'nohelm' (did you mean 'helm'?)"),
    (["update", "--upstream", "https://a/=http://b/"], 2, "http proves nothing of who answers"),
    (["seed", "--ssh-key", "/none.pub"], 2, "there is no public ssh key at /none.pub"),
    (["diff", "toolbox", "none.qcow2"], 2, "holds no release latest of toolbox"),
    (["diff", "images.yaml", "images.yaml"], 2, "images.yaml has no known format"),
    (["bundle-inputs", "tolbox"], 2, "images.yaml has no image 'tolbox' (did you mean 'toolbox'?)"),
    (["bundle-inputs", "toolbox", "dev-env", "--output", "/none/i.tar"], 2, "--output /none/i.tar: there is no folder"),
    (["build-image", "toolbox", "--bundle", "/none"], 2, "there is no bundle /none"),
    (["build-image", "toolbox", "--bundle", "images.yaml"], 2, "is no bundle of inputs"),
    (["rebuild", "toolbox"], 2, "holds no release latest of toolbox"),
    (["rebuild", "images.yaml"], 2, "images.yaml has no known format"),
    (["rebuild"], 1, "did not receive required positional arguments: 'release'"),
    (["build-image", "--security-data", "~nobody-has-this-name/x"], 2, "there is no such user"),
    (["diff", "toolbox"], 1, "did not receive required positional arguments: 'b'"),
    (["run", "--bogus"], 1, "No idea what '--bogus' is!"),
    (["build-image", "toolbox", "--sign", "/none"], 2, "there is no key /none"),
    (["build-image", "--all", "--sign", "/none"], 2, "there is no key /none"),
    (["sign", "toolbox"], 2, "there is no key to sign with"),
    (["sign", "toolbox", "/none"], 2, "holds no release latest of toolbox"),
    (["sign", "toolbox", "--with", "gpg"], 2, "there is no key to sign with"),
    (["verify", "toolbox", "--signature"], 2, "No file of allowed signers is named"),
    (["verify", "toolbox/20200101-00000000", "--allowed-signers", "x"], 2, "holds no release 20200101-00000000"),
    (["verify", "toolbox", "--allowed-signers", "~nobody-has-this-name/x"], 2, "there is no such user"),
    (["verify"], 1, "did not receive required positional arguments: 'file'"),
]
"""Arguments, the exit status, and a part of what is said."""


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> list[Done]:
    """What comes of WRONG: a start of Python for each would take a minute."""
    folder = tmp_path_factory.mktemp("wrong")
    here = Sandbox(PROJECT, folder / "cache", folder / "dist", {"VMIMAGE_ACCELERATOR": "tcg"})
    argv = [sys.executable, "-m", "tests.many_invokes"]
    lists = json.dumps([args for args, _, _ in WRONG])
    done = subprocess.run(
        argv, cwd=PROJECT, env=here.environment, input=lists, capture_output=True, text=True, check=True
    )
    return [Done(*each) for each in json.loads(done.stdout)]


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[" ".join(args) for args, _, _ in WRONG])
def test_wrong_input(wrong: list[Done], number: int) -> None:
    done, (_, status, said) = wrong[number], WRONG[number]
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [("run", "--help"), ("verify", "--help"), ("run", "-h"), ("--help", "run")])
def test_help_of_a_command_with_a_positional_argument(here: Sandbox, args: tuple[str, ...]) -> None:
    done = here.invoke(*args)
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_newer_pins_are_told_by_the_exit_code(here: Sandbox) -> None:
    with upstream() as pages:
        pages.kubectl("v1.37.99")
        mirrors = [f"--upstream={each}" for each in pages.upstreams]
        done = here.invoke("update", "--check", "kubectl", "--json", *mirrors)
    assert (done.returncode, done.stderr) == (7, "")
    assert (done.event("pin")["state"], done.event("pin")["version"]) == ("newer", "v1.37.99")
    assert done.event("result")["written"] is False


def test_errors_for_machines(here: Sandbox) -> None:
    done = here.invoke("plan", "tolbox", "--json")
    error = done.event("error")
    assert (done.returncode, error["exit_code"]) == (2, 2)
    assert error["hint"] == "the images are: toolbox, dev-env"


def test_cache_that_cannot_be_written(here: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = Sandbox(PROJECT, tmp_path / "file" / "cache", here.dist).invoke("list")
    assert done.returncode == 3
    assert "cannot write to the cache" in done.stderr


def test_clean_keeps_releases_until_asked(here: Sandbox) -> None:
    assert here.invoke("cache").returncode == 0
    (here.cache / "base" / "0123456789abcdef").mkdir(parents=True)
    version = released(here.dist, "toolbox", "20261127-01234567")
    assert here.invoke("clean").returncode == 0
    assert not (here.cache / "base").exists()
    assert version.exists()
    assert str(version) in here.invoke("clean", "--releases").stdout
    assert not here.dist.exists()


@pytest.mark.parametrize("value", ["abc", "1.5", "\x1b[2J"])
def test_number_that_is_none_is_told_without_a_traceback(value: str, here: Sandbox) -> None:
    done = here.invoke("run", f"--ssh-port={value}")
    assert done.returncode == 1
    assert f"--ssh-port {value!r}: no whole number" in done.stderr
    assert "Traceback" not in done.stderr
