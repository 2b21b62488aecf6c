"""kubectl and helm: every command that changes something is shown before it runs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dev_env import KUBECONFIG, Failure

SECONDS = 60.0


def environment() -> dict[str, str]:
    """Return the environment of kubectl and helm."""
    return {"KUBECONFIG": str(KUBECONFIG), **os.environ}


def show(argv: Sequence[str]) -> None:
    """Print a command as one would type it."""
    print(f"$ {shlex.join(argv)}", file=sys.stderr, flush=True)


def run(argv: Sequence[str], *, stdin: str | None = None, shown: bool = False, seconds: float = SECONDS) -> str:
    """Run a command and return its output.

    Raises:
        Failure: It failed, with what it said.
    """
    if shown:
        show(argv)
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=seconds, env=environment(), check=False
        )
    except FileNotFoundError as error:
        raise Failure(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{shlex.join(argv[:3])} … did not end within {seconds:.0f} s", "`dev-env doctor`") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise Failure(f"{shlex.join(argv[:3])} … failed:\n{said}", _hint(said))
    return done.stdout


def ask(argv: Sequence[str], *, seconds: float = SECONDS) -> Any:
    """Run a command that answers in JSON."""
    output = run(argv, seconds=seconds)
    return json.loads(output) if output.strip() else None


def items(kind: str, *, namespace: str = "", selector: str = "") -> list[dict[str, Any]]:
    """Return the Kubernetes objects of some kinds, of one namespace or of all."""
    where = ["--namespace", namespace] if namespace else ["--all-namespaces"]
    which = ["--selector", selector] if selector else []
    found: list[dict[str, Any]] = ask(["kubectl", "get", kind, *where, *which, "--output=json"])["items"]
    return found


def apply(objects: Sequence[dict[str, Any]]) -> None:
    """Create or change objects; what others set on them stays."""
    if objects:
        text = "\n---\n".join(map(json.dumps, objects))
        run(
            ["kubectl", "apply", "--server-side", "--force-conflicts", "--field-manager=dev-env", "-f", "-"], stdin=text
        )


@contextmanager
def started(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a command for the length of a `with` block; it is ended with it."""
    with subprocess.Popen(argv, env=environment(), **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def _hint(said: str) -> str:
    if any(text in said for text in ("connection refused", "was refused", "i/o timeout", "no such file")):
        return "the cluster may still be starting: `dev-env status`"
    return ""
