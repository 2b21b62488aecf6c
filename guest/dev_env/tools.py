"""kubectl and helm: every command that changes something is shown before it runs.

They work on this machine's cluster, whatever the shell's variables say, and what they answer has a limit.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import yaml

from dev_env import KUBECONFIG, Failure
from dev_env.bounds import CHUNK, END_SECONDS, OUTPUT_BYTES, PROGRAM_SECONDS, SAID_BYTES, read_text, size
from dev_env.console import say

LEADING_AWAY = ("KUBE", "HELM_")
"""Variables that begin so lead kubectl or helm to another cluster, namespace or user, or change how they answer."""
BUSY = (
    "Please retry", "stream error", "TLS handshake timeout", "http2: client connection lost", "unexpected EOF",
    "connection reset by peer", "server is currently unable to handle the request", "the server was unable to return",
    "etcdserver: request timed out", "Too Many Requests",
)  # fmt: skip
"""What kubectl and helm say of a cluster that is there and gave up in the middle: an answer may take it a minute."""
AGAIN_SECONDS = 5.0
PLACES = frozenset({
    "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HELM_REGISTRY_CONFIG", "HELM_REPOSITORY_CACHE",
    "HELM_REPOSITORY_CONFIG",
})  # fmt: skip
"""These only say where helm keeps its files: its logins to registries, for one."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
NO_PROXY = ("NO_PROXY", "no_proxy")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def environment(shell: Mapping[str, str] | None = None, *, program: str = "helm") -> dict[str, str]:
    """Return the environment of kubectl and helm: the shell's, without what leads to another cluster.

    Args:
        shell: The variables of the shell; this process's when None.
        program: helm alone gets proxies, to reach repositories of charts; never for the API server.
    """
    found = {
        name: value
        for name, value in (os.environ if shell is None else shell).items()
        if (name in PLACES or not name.startswith(LEADING_AWAY)) and name != "POD_NAMESPACE"
    }
    if program == "helm":
        past = [*LOOPBACK, *_api_hosts()]
        said = next((found[name] for name in NO_PROXY if found.get(name)), "")
        found |= dict.fromkeys(NO_PROXY, ",".join(dict.fromkeys([*filter(None, said.split(",")), *past])))
    else:
        found = {name: value for name, value in found.items() if name.lower() not in PROXIES}
    # kubectl's file of preferences may give each command other options.
    return {**found, "KUBECONFIG": str(KUBECONFIG), "KUBERC": "off", "KUBECTL_KUBERC": "false"}


def _api_hosts() -> list[str]:
    """Return the hosts of the API servers in the kubeconfig; none while there is no kubeconfig."""
    try:
        found = yaml.safe_load(read_text(KUBECONFIG))
        servers = [urlsplit(str(each["cluster"]["server"])).hostname for each in found["clusters"]]
    except (Failure, yaml.YAMLError, LookupError, TypeError, ValueError, RecursionError):
        return []  # kubectl says what is wrong with it
    return [server for server in servers if server]


def show(argv: Sequence[str]) -> None:
    """Print a command as one would type it."""
    say(f"$ {shlex.join(argv)}")


@dataclass(frozen=True)
class Done:
    """A command that has ended: its exit status, what it answered, and the end of what it said."""

    status: int
    output: str
    said: str


def run(argv: Sequence[str], *, stdin: str | None = None, shown: bool = False, seconds: float = PROGRAM_SECONDS) -> str:
    """Run a command and return its output.

    Raises:
        Failure: It failed, with what it said; or it answered more than OUTPUT_BYTES.
    """
    done = ended(argv, stdin=stdin, shown=shown, seconds=seconds)
    if done.status:
        said = (done.said or done.output).strip()
        raise Failure(f"{shlex.join(argv[:3])} … failed:\n{said}", _hint(said))
    return done.output


def ended(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    shown: bool = False,
    seconds: float = PROGRAM_SECONDS,
    meanwhile: Callable[[], object] | None = None,
) -> Done:
    """Run a command to its end, however it ends.

    Args:
        meanwhile: Called again and again, a second after it returned, until the command has ended.

    Raises:
        Failure: It is not installed, did not end in time, or answered more than OUTPUT_BYTES.
    """
    if shown:
        show(argv)
    end = time.monotonic() + seconds
    with tempfile.TemporaryFile() as given:
        given.write((stdin or "").encode(errors="surrogateescape"))
        given.seek(0)
        with started(argv, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout  # noqa: S101 - they are pipes
            assert process.stderr  # noqa: S101
            output, said = _Taken(process.stdout, OUTPUT_BYTES), _Taken(process.stderr, SAID_BYTES)
            while process.poll() is None and not output.over:
                if time.monotonic() > end:
                    raise Failure(f"{shlex.join(argv[:3])} … did not end within {seconds:.0f} s", "`dev-env doctor`")
                if meanwhile:
                    meanwhile()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0.01, min(1.0, end - time.monotonic())))
            text, complaint = output.text(), said.text()
        if output.over:
            raise Failure(f"{shlex.join(argv[:3])} … answered more than {size(OUTPUT_BYTES)}", "`dev-env doctor`")
        return Done(process.returncode, text, complaint)


class _Taken:
    """What a process writes into a pipe, taken while it runs: it never waits for us, and fills no memory.

    Attributes:
        over: It wrote more than `most` bytes; the last ones are kept.
    """

    def __init__(self, pipe: IO[bytes], most: int) -> None:
        self.over = False
        self._pipe, self._most, self._kept = pipe, most, bytearray()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        # A process that was ended leaves a closed pipe.
        with suppress(OSError, ValueError):
            while data := os.read(self._pipe.fileno(), CHUNK):
                self._kept += data
                if len(self._kept) > self._most:
                    self.over = True
                    del self._kept[: -self._most]

    def text(self) -> str:
        """Return what is kept, after the process has ended."""
        # All that was written before is taken; a child that it left behind may hold the pipe open, and write on.
        end = time.monotonic() + END_SECONDS
        while self._thread.is_alive() and time.monotonic() < end and select.select([self._pipe], [], [], 0)[0]:
            self._thread.join(timeout=0.05)
        self._thread.join(timeout=1.0)
        return bytes(self._kept).decode(errors="replace")


def ask(argv: Sequence[str], *, seconds: float = PROGRAM_SECONDS) -> Any:
    """Run a command that changes nothing and answers in JSON; again, while the cluster is too busy to answer it.

    Args:
        seconds: For all attempts together.

    Raises:
        Failure: It failed, or its answer is no JSON.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            output = run(argv, seconds=max(1.0, end - time.monotonic()))
            break
        except Failure as failure:
            if not any(text in str(failure) for text in BUSY) or time.monotonic() + AGAIN_SECONDS > end:
                raise
        time.sleep(AGAIN_SECONDS)
    try:
        return json.loads(output) if output.strip() else None
    except (ValueError, RecursionError) as error:
        raise Failure(f"{shlex.join(argv[:3])} … did not answer in JSON: {error}", "`dev-env doctor`") from error


@contextmanager
def started(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a command for the length of a `with` block; it is ended with it.

    Raises:
        Failure: It cannot be started.
    """
    program = os.path.basename(argv[0])  # noqa: PTH119 - it need not be a path
    try:
        process = subprocess.Popen(argv, env=environment(program=program), **options)
    except FileNotFoundError as error:
        raise Failure(f"{argv[0]} is not installed") from error
    except (OSError, ValueError) as error:
        raise Failure(f"{argv[0]} cannot be started: {error}") from error
    with process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process that still runs: it is asked first."""
    if process.poll() is None:
        # What sudo started is not ours to end; it ends when its pipes do.
        with suppress(PermissionError):
            process.terminate()
            try:
                process.wait(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _hint(said: str) -> str:
    if any(text in said for text in ("connection refused", "was refused", "i/o timeout", "no such file")):
        return "the cluster may still be starting: `dev-env status`"
    return ""
