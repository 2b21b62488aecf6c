"""`invoke verify --signature RELEASE`: whose release this is, and whether all its files are still those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmimage.commands.session import session
from vmimage.commands.sign import release_folder
from vmimage.publish.signatures import Checked, check_release
from vmimage.publish.ssh import Trust
from vmimage.util.console import Console
from vmimage.util.errors import InputError
from vmimage.util.files import expanded
from vmimage.util.settings import Options

SHOWN = 5


def verify_signature(release: str, chosen: Options, *, revoked: str | None, signer: str | None, json: bool) -> None:
    """Check a release offline, and print who signed it and what is stated of it."""
    with session(chosen, json_lines=json) as (console, _store):
        if not chosen.allowed_signers:
            raise InputError(
                "whose signature counts? No file of allowed signers is named",
                hint="--allowed-signers FILE, or set VMIMAGE_ALLOWED_SIGNERS: get it from the publisher itself, not "
                "from where the release comes from",
            )
        folder = release_folder(release, chosen.dist)
        trust = Trust(
            allowed=chosen.allowed_signers,
            revoked=expanded(revoked, "--revoked").absolute() if revoked else None,
            signer=signer or "",
        )
        with console.stage("verify", str(folder)) as step:
            checked = check_release(folder, trust)
            step.outcome = f"{len(checked.content.digests)} files are those that were signed"
        _tell(checked, console)


def _tell(checked: Checked, console: Console) -> None:
    manifest = checked.content.manifest
    if checked.beside:
        shown = ", ".join(checked.beside[:SHOWN]) + (", …" if checked.beside[SHOWN:] else "")
        console.warn(f"beside the release lies what nobody signed: {shown}")
    signers = {name: vars(signer) for name, signer in checked.signers.items()}
    console.event("result", image=manifest.image, version=manifest.version, signers=signers)
    console.say(f"{manifest.image} {manifest.version}")
    for name, signer in checked.signers.items():
        console.say(f"  {name}: signed by {signer}")
    console.say(f"  made from: {_sources(checked.provenance)}")
    console.say(f"  booted and checked: {_list(checked.verdict.get('passedTests'))}")


def _sources(provenance: Mapping[str, Any]) -> str:
    """Return the commit that a provenance names; what it says is data."""
    definition = provenance.get("buildDefinition")
    inputs = definition.get("resolvedDependencies") if isinstance(definition, Mapping) else None
    found = [each for each in inputs if isinstance(each, Mapping)] if isinstance(inputs, list) else []
    digests = [each.get("digest") for each in found if each.get("name") == "sources"]
    commit = next((each["gitCommit"] for each in digests if isinstance(each, Mapping) and "gitCommit" in each), None)
    return f"{f'commit {commit!s:.64}' if commit else 'sources of no git commit'}, and {len(found)} inputs"


def _list(names: object) -> str:
    return ", ".join(f"{name!s:.80}" for name in names[:100]) if isinstance(names, list) else "-"
