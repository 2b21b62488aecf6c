"""Keys as ssh finds them, and what is said of those that cannot be used."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from tests.ssh_agent import ssh_agent
from tests.ssh_server import ssh_server
from tests.tools import host_key
from vmimage.access import login
from vmimage.access.identities import UnusableKeyError, load_private_key, public_blob
from vmimage.access.login import Address, log_in
from vmimage.util.errors import InputError, VmimageError

HOST_KEY = host_key("ed25519")
KINDS: dict[str, Callable[[], Any]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505 - soon made
}
FORMS = {"openssh": PrivateFormat.OpenSSH, "pkcs8": PrivateFormat.PKCS8, "pem": PrivateFormat.TraditionalOpenSSL}
SECURITY_KEY = paramiko.Message()
SECURITY_KEY.add_string("sk-ssh-ed25519@openssh.com")
SECURITY_KEY.add_string(b"k" * 32)
SECURITY_KEY.add_string("ssh:")


def written(path: Path, *, kind: str = "ed25519", form: str = "openssh", passphrase: bytes = b"") -> paramiko.PKey:
    """Write a private key; returns it."""
    made = KINDS[kind]()
    path.parent.mkdir(exist_ok=True, mode=0o700)
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase and form == "openssh":
        encryption = FORMS[form].encryption_builder().kdf_rounds(1).build(passphrase)
    elif passphrase:
        encryption = BestAvailableEncryption(passphrase)
    path.write_bytes(made.private_bytes(Encoding.PEM, FORMS[form], encryption))
    classes: dict[str, type[paramiko.PKey]] = {
        "ed25519": paramiko.Ed25519Key,
        "ecdsa": paramiko.ECDSAKey,
        "rsa": paramiko.RSAKey,
    }
    text = made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return classes[kind].from_private_key(io.StringIO(text))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_keys_of_every_form_are_read(kind: str, form: str, tmp_path: Path) -> None:
    if (kind, form) == ("ed25519", "pem"):
        pytest.skip("there is no such form")
    key = written(tmp_path / "key", kind=kind, form=form)
    assert load_private_key(tmp_path / "key") == key


@pytest.mark.parametrize("form", ["openssh", "pkcs8"])
def test_passphrase_is_named_and_not_asked_for(form: str, tmp_path: Path) -> None:
    key = written(tmp_path / "key", form=form, passphrase=b"secret")
    with pytest.raises(UnusableKeyError, match=r"has a passphrase.*`ssh-add "):
        load_private_key(tmp_path / "key")
    assert public_blob(tmp_path / "key") == (key.asbytes() if form == "openssh" else b"")
    (tmp_path / "key.pub").write_text(f"{key.get_name()} {key.get_base64()} me\n")
    assert public_blob(tmp_path / "key") == public_blob(tmp_path / "key.pub") == key.asbytes()


def security_key() -> bytes:
    """Return the private half of a security key, as ssh-keygen writes it: cryptography knows no such kind."""
    text = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    message = paramiko.Message()
    message.add_bytes(b"openssh-key-v1\0")
    for part in (b"none", b"none", b""):
        message.add_string(part)
    message.add_int(1)
    message.add_string(SECURITY_KEY.asbytes())
    message.add_string(b"\0" * 8 + SECURITY_KEY.asbytes())
    lines = text.splitlines()
    return b"\n".join([lines[0], base64.b64encode(message.asbytes()), lines[-1], b""])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is no private key of ssh"),
        (b"\xff" * 100, "is no private key of ssh"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "is no private key of ssh"),
        (b"PuTTY-User-Key-File-3: ssh-ed25519\n", "is of PuTTY: `puttygen"),
        (b"ssh-ed25519 AAAA me", "is a public key"),
        (b"x" * (65 << 10), "is larger than 64 KiB"),
        (security_key(), "is of a security key, which the agent uses"),
        (
            dsa.generate_private_key(1024).private_bytes(  # noqa: S505 - of long ago
                serialization.Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            "is not used any more",
        ),
    ],
    ids=["empty", "binary", "cut short", "putty", "public", "large", "security key", "dsa"],
)
def test_why_a_file_gives_no_key(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(data)
    with pytest.raises(UnusableKeyError, match=why):
        load_private_key(tmp_path / "key")


class Here:
    """A home with keys, and a machine that lets some of them in."""

    def __init__(self, home: Path) -> None:
        self.home, self.ssh = home, home / ".ssh"
        self.ssh.mkdir(parents=True)
        self.said: list[str] = []

    def log_in(self, *allowed: paramiko.PKey, key: Path | None = None, host: str = "127.0.0.1") -> str:
        """Log in; returns `in`, or the error."""
        with ssh_server(HOST_KEY, allowed=[each.asbytes() for each in allowed]) as port:
            address = Address(host=host, port=port, key=key, host_key=HOST_KEY.fingerprint)
            try:
                with log_in(address, self.home / "known_hosts", self.said.append):
                    return "in"
            except InputError as error:
                return f"{error.message}\n{error.hint}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return Here(tmp_path / "home")


@pytest.mark.parametrize("name", ["id_rsa", "id_ecdsa", "id_ed25519"])
def test_usual_files_are_offered(name: str, here: Here) -> None:
    key = written(here.ssh / name, kind=name.removeprefix("id_"))
    assert here.log_in(key) == "in"


def test_named_key_from_its_file_and_from_the_agent(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, locked = written(here.home / "plain"), written(here.home / "locked", passphrase=b"x")
    assert here.log_in(plain, key=here.home / "plain") == "in"
    said = here.log_in(locked, key=here.home / "locked")
    assert "none of your keys can be offered" in said
    assert "locked has a passphrase, and nothing asks for it here: `ssh-add" in said
    with ssh_agent(here.home / "agent", host_key("ed25519"), locked) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", agent)
        assert here.log_in(locked, key=here.home / "locked") == "in"
        said = here.log_in(plain, key=here.home / "locked")
        assert said.count("offered: ") == 1, "only the one that was named"
        assert here.log_in(locked) == "in", "the agent by itself"


def test_security_key_of_the_agent_is_offered_and_others_after_it(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    key = written(here.ssh / "id_ed25519")
    with ssh_agent(here.home / "agent", more=(SECURITY_KEY.asbytes(),)) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", agent)
        assert here.log_in(key) == "in"
        assert "offered: held (agent), SHA256:" in here.log_in()


def test_key_that_the_agent_does_not_sign_with_stops_nothing(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    key = written(here.ssh / "id_ed25519")
    others = [host_key("ed25519").asbytes(), host_key("ecdsa").asbytes()]
    with ssh_agent(here.home / "agent", more=tuple(others)) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", agent)
        assert here.log_in(key) == "in"


def test_agent_that_has_gone_is_told(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    key = written(here.ssh / "id_ed25519")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(here.home / "none"))
    assert here.log_in(key) == "in"
    assert "is not used" in here.said[0]


@pytest.mark.parametrize(
    "text",
    [
        "Host localhost\n  IdentityFile ~/.ssh/vm\n",
        "Host 127.0.0.*\n  IdentityFile %d/.ssh/vm\n",
        "IdentityFile ~/.ssh/vm\n",
        "Include more\nHost x\n",
        "Host x\n  Include more\n",
        "this is no setting\n=\nHost localhost\nIdentityFile ~/.ssh/vm\nProxyJump none\n",
        "Host 127.0.0.1\n  IdentityFile ~/.ssh/none\n  IdentityFile ~/.ssh/vm\n  IdentityAgent none\n",
        "Host localhost\n  IdentityFile ~/.ssh/vm\n  IdentitiesOnly yes\n",
    ],
)
def test_keys_of_ssh_config_count(text: str, here: Here) -> None:
    key = written(here.ssh / "vm")
    (here.ssh / "more").write_text("Host *\n IdentityFile ~/.ssh/vm\n")
    (here.ssh / "config").write_text(text)
    assert here.log_in(key) == "in"


def test_agent_of_ssh_config_counts_and_only_its_keys_that_are_named(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = written(here.home / "vm", passphrase=b"x")
    (here.ssh / "vm.pub").write_text(f"{key.get_name()} {key.get_base64()} me\n")
    with ssh_agent(here.home / "agent", key, host_key("ed25519")) as agent:
        (here.ssh / "config").write_text(f"Host localhost\n  IdentityAgent {agent}\n")
        assert here.log_in(key) == "in"
        only = "  IdentityFile ~/.ssh/vm.pub\n  IdentitiesOnly yes\n"
        (here.ssh / "config").write_text(f"Host localhost\n  IdentityAgent {agent}\n{only}")
        assert here.log_in(key) == "in"
        assert here.log_in().count("    offered: ") == 1
        monkeypatch.setenv("SSH_AUTH_SOCK", agent)
        (here.ssh / "config").write_text("Host localhost\n  IdentityAgent none\n")
        assert "you have no key" in here.log_in(key)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"Host localhost\n  nonsense\n", "config:2 is not used: nonsense"),
        (b"\xff\xfe\x00", "config is not used"),
        (b"Match nonsense\n", "config is not used"),
        (b"Match host\n", "config is not used"),
        (b"CanonicalizeHostname yes\n", "config is not used"),
        (b"x" * (2 << 20), "config is not used: larger than 1 MiB"),
        (b"Include config\n", "files include each other"),
        (b"ProxyJump bastion\n", "proxyjump is not used"),
        (b"ProxyCommand nc %h %p\n", "proxycommand is not used"),
    ],
)
def test_broken_ssh_config_is_a_warning(text: bytes, told: str, here: Here) -> None:
    key = written(here.ssh / "id_ed25519")
    (here.ssh / "config").write_bytes(text)
    assert here.log_in(key) == "in"
    assert told in " ".join(here.said)


def test_what_was_offered_is_told(here: Here) -> None:
    assert "you have no key for dev@127.0.0.1" in here.log_in()
    key = written(here.ssh / "id_ed25519")
    (here.ssh / "id_rsa").write_text("nonsense")
    said = here.log_in()
    assert "lets none of your keys in" in said
    assert f"offered: {here.ssh}/id_ed25519, {key.fingerprint}" in said
    assert f"not offered: {here.ssh}/id_rsa is no private key of ssh" in said
    assert "--ssh-key" in said


def test_machine_that_hangs_up_after_some_keys(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [host_key("ed25519") for _ in range(14)]
    with ssh_agent(here.home / "agent", *keys) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", agent)
        said = here.log_in()
    assert "hung up before one of your keys was let in" in said
    assert "name the one that it knows with --ssh-key" in said


def test_waiting_for_keys_to_be_refused_has_an_end(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    key = written(here.ssh / "id_ed25519")
    monkeypatch.setattr(login, "OFFER_SECONDS", -1.0)
    assert "lets none of your keys in" in here.log_in(key)
    assert issubclass(InputError, VmimageError)
