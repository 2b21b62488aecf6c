"""The tests' stand-in for k3s: what it decides, without a network."""

from __future__ import annotations

import time
from pathlib import Path

from tests.k3s_stand_in.program.containers import Container
from tests.k3s_stand_in.program.images import Image
from tests.k3s_stand_in.program.kubelet import answered
from tests.k3s_stand_in.program.network import CLOSED_PORT

HELLO = "localhost/hello:1"


def test_readiness_is_what_the_network_answers(tmp_path: Path) -> None:
    end = ("10.42.0.2", 8080)
    assert answered(None, False, end), "nothing runs, and the kernel of the pod's network refused"
    assert not answered(None, None, end)
    container = Container("page", Image(HELLO, "sha256:1", "", 0), ["sleep", "60"], tmp_path / "log")
    assert not answered(container, True, end), "it was not started"
    container.keep_running("Always")
    assert container.process
    assert [answered(container, answer, end) for answer in (True, False, None)] == [True, False, False]
    assert answered(container, None, (end[0], CLOSED_PORT)), "there is no probe"
    container.process.kill()
    container.process.wait()
    assert not answered(container, True, end)


def test_container_is_started_again_unless_it_should_not(tmp_path: Path) -> None:
    again = Container("page", Image(HELLO, "sha256:1", "", 0), ["true"], tmp_path / "log")
    once = Container("page", Image(HELLO, "sha256:1", "", 0), ["true"], tmp_path / "log")
    end = time.monotonic() + 20
    while again.restarts < 1 and time.monotonic() < end:
        again.keep_running("Always")
        once.keep_running("OnFailure")
        time.sleep(0.05)
    assert again.process
    again.process.wait()
    assert (again.restarts, once.restarts, once.exit_code) == (1, 0, 0)
