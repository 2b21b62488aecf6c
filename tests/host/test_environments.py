"""Environments that people really have: what one of them changes is a fault, unless a line of the tables says so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.sandbox import copy_project
from vmimage import PROJECT
from vmimage.stages.release.stage import git_state

PASSWORD = "t0psecret"  # noqa: S105 - of a proxy that is none
KEPT = ("PATH", "HOME", "LANG")
NOBODY = 54321


@dataclass(frozen=True)
class Run:
    """`invoke ARGS` somewhere."""

    args: tuple[str, ...] = ("plan", "toolbox")
    env: Mapping[str, str | None] = field(default_factory=dict)
    umask: int = 0o022
    user: int | None = None


def invoke(run: Run, scratch: Path, project: Path = PROJECT, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run it; returns its status, and what it wrote to standard output and standard error."""
    env: dict[str, str | None] = {name: os.environ.get(name) for name in KEPT}
    env |= {"VMIMAGE_CACHE": str(scratch / "cache"), "VMIMAGE_DIST": "/none/dist", "VMIMAGE_ACCELERATOR": "tcg"}
    env |= {"PYTHONDONTWRITEBYTECODE": "1"} | dict(run.env)
    argv = [sys.executable, "-P", "-m", "invoke", "--search-root", str(project), *run.args]
    done = subprocess.run(
        argv,
        cwd=cwd or project,
        env={name: value for name, value in env.items() if value is not None},
        umask=run.umask,
        user=run.user,
        group=run.user,
        extra_groups=[] if run.user else None,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder that every user may look into."""
    with tempfile.TemporaryDirectory(prefix="vmimage-environments-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def usual(scratch: Path) -> str:
    """What `invoke plan` says in a plain environment: the keys of all stages are in it."""
    status, said, wrong = invoke(Run(), scratch)
    assert (status, wrong) == (0, "")
    return said


LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PROXY = f"http://ci:{PASSWORD}@proxy.invalid:3128"

# Of programs that do not ask for each other's: pip, git, kubectl, TLS, all of GNU, dpkg, Invoke.
OTHERS = {
    "PIP_USER": "1", "PIP_TARGET": "/none", "PIP_REQUIRE_VIRTUALENV": "1",
    "GIT_DIR": "/none/.git", "GIT_WORK_TREE": "/none", "GIT_TRACE": "1",
    "KUBECONFIG": "/none/config:/dev/null",
    "SSL_CERT_FILE": "/none.pem", "REQUESTS_CA_BUNDLE": "/none.pem",
    "POSIXLY_CORRECT": "1", "DPKG_COLORS": "always", "APT_LISTCHANGES_FRONTEND": "none",
    "INVOKE_RUN_ECHO": "1", "INVOKE_TASKS_COLLECTION_NAME": "none",
}  # fmt: skip

# Name -> what is set, or taken away (None): the plan is the usual one, to the last key.
SAME: dict[str, Run] = {
    "no HOME": Run(env={"HOME": None}),
    "empty HOME": Run(env={"HOME": ""}),
    "HOME that is not there": Run(env={"HOME": "/none"}),
    "relative HOME": Run(env={"HOME": "."}),
    "relative XDG folders": Run(env={"XDG_CACHE_HOME": "cache", "XDG_STATE_HOME": "state"}),
    "umask 077": Run(umask=0o077),
    "umask 002": Run(umask=0o002),
    "umask 000": Run(umask=0),
    "a locale without UTF-8": Run(env=LATIN),
    "a terminal without UTF-8": Run(env={"PYTHONIOENCODING": "ascii"}),
    "another language": Run(env={"LANG": "de_DE.UTF-8", "LANGUAGE": "de:fr", "LC_ALL": "de_DE.UTF-8"}),
    "Python without assertions": Run(env={"PYTHONOPTIMIZE": "2"}),
    "Python in development mode": Run(env={"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "ignore"}),
    "proxies": Run(env={"http_proxy": PROXY, "https_proxy": PROXY, "no_proxy": "*"}),
    "settings of other programs": Run(env=OTHERS),
    "no temporary folder": Run(env={"TMPDIR": "/none"}),
    "no PATH": Run(env={"PATH": None}),
    "empty PATH": Run(env={"PATH": ""}),
    "a terminal of one column": Run(env={"COLUMNS": "1", "LINES": "1", "TERM": "dumb", "FORCE_COLOR": "1"}),
}


@pytest.mark.parametrize("name", SAME)
def test_environment_changes_nothing(name: str, scratch: Path, usual: str) -> None:
    status, said, wrong = invoke(SAME[name], scratch)
    assert (status, wrong) == (0, "")
    assert said == usual
    assert PASSWORD not in said + wrong


@pytest.mark.parametrize("args", [("list",), ("cache",), ("--list",)], ids=" ".join)
def test_other_commands(args: tuple[str, ...], scratch: Path) -> None:
    env = {**LATIN, "PYTHONIOENCODING": "ascii", "HOME": None, "PATH": ""}
    status, said, wrong = invoke(Run(args=args, env=env), scratch)
    assert (status, wrong) == (0, "")
    assert said


# What cannot work is told with a way out. Name -> what is run, the exit status, and a part of what is said.
TOLD: dict[str, tuple[Run, int, str]] = {
    "no home for the cache": (Run(env={"HOME": "", "VMIMAGE_CACHE": ""}, user=NOBODY), 3, "set VMIMAGE_CACHE"),
    "cache at the home of an unknown user": (Run(env={"VMIMAGE_CACHE": "~not-a-user/c"}), 2, "no such user"),
    "mirror at the home of an unknown user": (Run(args=("plan", "--mirror", "~not-a-user/x")), 2, "no such user"),
    "a quotation mark alone": (Run(env={"VMIMAGE_MIRROR": "/srv/a 'b"}), 0, "/srv/a/kubectl"),
    "a number that is none": (Run(args=("fetch", "toolbox"), env={"VMIMAGE_FETCH_RATE": "much"}), 2, "digits only"),
    "Debian mirror that is none": (Run(env={"VMIMAGE_DEB_MIRROR": f"ci:{PASSWORD}@m"}), 2, "'***@m' is neither a URL"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_what_cannot_work_is_told(name: str, scratch: Path) -> None:
    run, status, part = TOLD[name]
    project = PROJECT
    with contextlib.ExitStack() as stack:
        if run.user:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmimage-copy-")))
            folder.chmod(0o755)
            project = copied(folder / "copy")
            if not usable(run.user, project):
                pytest.skip("only root has other users, and Python has to be where they may read it")
        found, said, wrong = invoke(run, scratch, project)
    assert found == status, wrong
    assert part in said + wrong
    assert "Traceback" not in wrong
    assert PASSWORD not in said + wrong


def copied(to: Path) -> Path:
    """Copy the project to where every user may read it."""
    copy_project(PROJECT, to)
    for folder in (to, *to.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() or folder.stat().st_mode & 0o100 else 0o644)
    return to


def usable(user: int, project: Path) -> bool:
    """Tell whether another user may read a project, and start our Python."""
    if os.geteuid() != 0:
        return False
    argv = [sys.executable, "-c", f"import invoke; open({str(project / 'tasks.py')!r})"]
    return not subprocess.run(argv, user=user, group=user, extra_groups=[], check=False, capture_output=True).returncode


# --- Checkouts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["-a b,c:d\ne=f", "ä\udcff$(id)'\"%s{}*"])
def test_names_of_checkouts_and_caches(name: str, scratch: Path, usual: str, tmp_path: Path) -> None:
    project = copied(tmp_path / name)
    status, said, wrong = invoke(Run(env={"VMIMAGE_CACHE": str(tmp_path / name / "cache")}), scratch, project)
    assert (status, wrong) == (0, "")
    assert keys(said) == keys(usual)


def keys(said: str) -> list[str]:
    """Return the keys of stages and layers of a plan."""
    return [line.split("[")[1].split("]")[0] for line in said.splitlines() if "[" in line]


def test_checkout_that_cannot_be_written_of_a_user_without_a_name(scratch: Path, usual: str) -> None:
    with tempfile.TemporaryDirectory(prefix="vmimage-copy-") as name:
        project = copied(Path(name) / "read only")
        Path(name).chmod(0o755)
        if not usable(NOBODY, project):
            pytest.skip("only root has other users, and Python has to be where they may read it")
        own = Path(name) / "own"
        own.mkdir()
        os.chown(own, NOBODY, NOBODY)
        run = Run(env={"HOME": None, "VMIMAGE_CACHE": str(own / "cache")}, user=NOBODY, umask=0o077)
        status, said, wrong = invoke(run, scratch, project)
        assert (status, wrong) == (0, "")
        assert keys(said) == keys(usual)
        assert (own / "cache").stat().st_mode & 0o777 == 0o700


def test_from_another_directory_with_its_own_modules(scratch: Path, usual: str, tmp_path: Path) -> None:
    for module in ("tasks", "vmimage", "invoke", "json", "dev", "requests"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "invoke.yaml").write_text("tasks: {collection_name: none}\n")
    assert invoke(Run(), scratch, cwd=tmp_path) == (0, usual, "")


# --- Git -------------------------------------------------------------------------------------------------------


def git(folder: Path, *args: str) -> str:
    argv = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@example.org", *args]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of another project, with a commit."""
    (tmp_path / "outer").mkdir()
    git(tmp_path / "outer", "init", "-q")
    (tmp_path / "outer" / "file").write_text("")
    git(tmp_path / "outer", "add", "file")
    git(tmp_path / "outer", "commit", "-qm", "first")
    return tmp_path / "outer"


def test_git_of_the_environment_is_not_asked(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    git(own, "init", "-q")
    (own / "tasks.py").write_text("")
    git(own, "add", "tasks.py")
    git(own, "commit", "-qm", "ours")
    wanted = {"commit": git(own, "rev-parse", "HEAD"), "changed": []}
    assert git_state(own) == wanted
    for name, value in {
        "GIT_DIR": str(repository / ".git"),
        "GIT_WORK_TREE": str(repository),
        "GIT_INDEX_FILE": "/none",
        "GIT_OBJECT_DIRECTORY": "/none",
        "GIT_NAMESPACE": "x",
        "GIT_TRACE": "1",
        "GIT_CEILING_DIRECTORIES": str(tmp_path),
        "GIT_CONFIG_COUNT": "x",
    }.items():
        monkeypatch.setenv(name, value)
    assert git_state(own) == wanted


def test_copy_inside_another_repository_is_none_of_it(repository: Path) -> None:
    copy = repository / "vmimage"
    copy.mkdir()
    (copy / "tasks.py").write_text("")
    assert git_state(copy) == {}
    git(repository, "add", "vmimage/tasks.py")
    git(repository, "commit", "-qm", "a copy that it keeps")
    (repository / "elsewhere").write_text("")
    assert git_state(copy) == {"commit": git(repository, "rev-parse", "HEAD"), "changed": []}


def test_no_repository_and_a_broken_one(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {}
    (tmp_path / ".git").write_text("gitdir: /none\n")
    (tmp_path / "tasks.py").write_text("")
    assert git_state(tmp_path) == {}
