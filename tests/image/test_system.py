"""Component system: the user dev and the settings of files/10-system."""

from __future__ import annotations

from testinfra.host import Host


def test_user_dev(host: Host) -> None:
    user = host.user("dev")
    assert (user.uid, user.home, user.shell) == (1000, "/home/dev", "/bin/bash")


def test_sshd_as_configured(root: Host) -> None:
    settings = root.check_output("sshd -T")
    for line in ("passwordauthentication no", "kbdinteractiveauthentication no", "permitrootlogin no"):
        assert line in settings.splitlines()
