from __future__ import annotations

from pathlib import Path

import pytest

from vmimage import PROJECT
from vmimage.util.errors import InputError
from vmimage.util.settings import ENVIRONMENT, options


def test_defaults() -> None:
    chosen = options({"HOME": "/h"})
    assert chosen.dist == PROJECT / "dist"
    assert chosen.cache.name == "vmimage"
    assert (chosen.mirrors, chosen.debian_mirror, chosen.accelerator) == ((), None, None)


def test_environment_and_arguments_that_win() -> None:
    environment = {
        "VMIMAGE_CACHE": "/c",
        "VMIMAGE_DIST": "/d",
        "VMIMAGE_STATE": "/s",
        "VMIMAGE_MIRROR": "/m https://n",
        "VMIMAGE_UPSTREAM": "https://a/=https://b/ https://c/=https://d/",
        "VMIMAGE_DEB_MIRROR": "http://e",
        "VMIMAGE_ACCELERATOR": "tcg",
    }
    chosen = options(environment, mirrors=["/first"], accelerator="kvm")
    assert (chosen.cache, chosen.dist, chosen.state) == (Path("/c"), Path("/d"), Path("/s"))
    assert chosen.mirrors == ("/first", "/m", "https://n")
    assert chosen.upstreams == ("https://a/=https://b/", "https://c/=https://d/")
    assert (chosen.debian_mirror, chosen.accelerator) == ("http://e", "kvm")


def test_key_and_allowed_signers_are_files_from_here_on() -> None:
    environment = {"VMIMAGE_SIGN": "k", "VMIMAGE_ALLOWED_SIGNERS": "/a"}
    chosen = options(environment)
    assert (chosen.sign, chosen.allowed_signers) == (Path("k").absolute(), Path("/a"))
    # A build of all images starts others in another directory.
    assert chosen.environment["VMIMAGE_SIGN"] == str(Path("k").absolute())
    chosen = options(environment, sign="/l", allowed_signers="/b")
    assert (chosen.sign, chosen.allowed_signers) == (Path("/l"), Path("/b"))
    assert (options({"VMIMAGE_SIGN": ""}).sign, options({}).environment["VMIMAGE_SIGN"]) == (None, "")


def test_cache_and_state_follow_xdg() -> None:
    assert options({"XDG_CACHE_HOME": "/x"}).cache == Path("/x/vmimage")
    assert options({"XDG_STATE_HOME": "/x"}).known_hosts == Path("/x/vmimage/known_hosts")
    assert options({}).state == Path.home() / ".local/state/vmimage"


def test_readme_explains_every_variable() -> None:
    readme = (PROJECT / "README.md").read_text()
    assert not [name for name in ENVIRONMENT if name not in readme]


@pytest.mark.parametrize("name", ["VMIMAGE_CACHE", "XDG_CACHE_HOME"])
def test_cache_that_e2fsprogs_would_not_find_is_refused(name: str) -> None:
    """It opens FILE?offset=BYTES, and takes the first question mark."""
    with pytest.raises(InputError, match=r"VMIMAGE_CACHE=/srv/what\?/.*question mark"):
        options({name: "/srv/what?/cache"})
