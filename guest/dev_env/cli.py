"""The command line of `dev-env`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dev_env import (
    PROFILES,
    Failure,
    archives,
    charts,
    doctor,
    durable,
    files,
    forwards,
    images,
    load,
    names,
    ready,
    state,
    update,
    watching,
)
from dev_env.api import Api
from dev_env.bounds import HELM_SECONDS, read_text
from dev_env.console import answer, answer_whole, prepare, say

FORM = """\
A values file says which charts to run:

  charts:
    shop:                          # the name of the release
      chart: ./charts/shop         # a directory or archive beside this file, oci://…, or a chart's name in `repo`
      repo: https://charts.example.com
      version: 1.2.3
      digest: sha256:…             # of the chart's archive; another one is refused
      namespace: default
      values:                      # settings of the chart; `helm show values CHART` lists them
        replicas: 1

You can give several files: later ones win, key by key. A chart that a later file sets to null is left out.
"""
SHARING = """\
You share a directory from your own computer; the files stay there. On it, in a checkout of vmimage:

  invoke share ~/src{port}                      mounts it here as /home/dev/src
  invoke share ~/src /home/dev/src --notify{port}

A chart mounts it into a pod with hostPath: /home/dev/src.
"""
IMAGES = """\
  list     list the names of all images (the default)
  load     load images from files, for a machine without a network; only you can remove these images
  prune    list the images that nothing uses; with --remove, remove them
  index    record which images the archives of the machine hold (for the build of the image, as root)
  pin      pin the images that came with the machine (for a service of the system)
"""
Command = Callable[..., argparse.ArgumentParser]
MOST_SECONDS = 7 * 24 * 3600


def do_up(options: argparse.Namespace) -> None:
    """Install the charts that values files or profiles name, and wait until they are ready."""
    wanted = files.merged([files.read(files.find(argument)) for argument in options.files])
    charts.up(wanted, seconds=options.timeout, force=options.force)
    names.reconcile(Api())
    show_services()


def do_down(options: argparse.Namespace) -> None:
    """Uninstall what `up` installed."""
    removed = charts.down(options.names)
    answer(f"uninstalled: {', '.join(removed)}" if removed else "nothing was installed")


def do_export(options: argparse.Namespace) -> None:
    """Write the values file that reproduces what runs now."""
    folder = None
    if options.output:
        folder = options.output.absolute().with_suffix(".charts")
        for path in (options.output, folder):
            if durable.there(path) and not options.force:
                raise Failure(f"{path} exists", "remove it, give another name with --output, or say --force")
        folder.mkdir(parents=True, exist_ok=True)
    text, notes = charts.exported(folder)
    for note in notes:
        say(f"note: {note}")
    if not options.output:
        answer_whole(text)
        return
    durable.write(options.output, text)
    if folder and not any(folder.iterdir()):
        folder.rmdir()
    say(f"written: {options.output}")


def do_profiles(_: argparse.Namespace) -> None:
    """List the values files that come with the machine."""
    rows = []
    for path in sorted(PROFILES.glob("*.yaml")):
        first = (read_text(path).splitlines() or [""])[0]
        rows.append([path.stem, first.removeprefix("# ")])
    answer(state.table(rows))
    say("\n`dev-env up NAME` runs one. You can add files of your own: `dev-env up NAME mine.yaml`")


def do_services(_: argparse.Namespace) -> None:
    """List services: where they are on your computer, and whether they answer."""
    show_services()


def show_services() -> None:
    """Print the services, and what has to be known of their addresses."""
    rows, notes = state.services()
    answer(state.table(rows))
    for note in notes:
        say(f"\n{note}")


def do_status(_: argparse.Namespace) -> None:
    """Show the state of the environment."""
    answer("\n".join(state.status()))


def do_doctor(options: argparse.Namespace) -> None:
    """Look for what is wrong and say what to do; with --fix, do it."""
    if options.fix and os.geteuid():
        # Only root reads the archives of images that the machine brings.
        os.execvp("sudo", ["sudo", sys.argv[0], "doctor", "--fix"])  # noqa: S606 - it is to take our place
    bad = 0
    for check, fault in doctor.examine(say, fix=options.fix):
        answer(f"BAD {check.name}: {fault}\n    {check.remedy}" if fault else f"ok  {check.name}")
        bad += bool(fault)
    if bad:
        raise Failure(f"{bad} of these are not as they should be")


def do_version(options: argparse.Namespace) -> None:
    """Show which image this is, and the versions in it."""
    found = state.version()
    answer(json.dumps(found) if options.json else state.table([[key, value] for key, value in found.items()]))


def do_share(_: argparse.Namespace) -> None:
    """Explain how to share a directory of your computer, and list those that are shared."""
    found = forwards.read()
    ssh = found.ports.get(forwards.SSH)
    answer(SHARING.replace("{port}", "" if ssh in (None, forwards.USUAL[forwards.SSH]) else f" --ssh-port {ssh}"))
    if not found.told:
        say("Where another port than 2222 leads to ssh of this machine, add --ssh-port PORT.\n")
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    shared = [fields[1] for fields in mounts if fields[2] == "fuse.sshfs"]
    answer("shared now: " + (", ".join(shared) or "nothing"))


def do_images(options: argparse.Namespace) -> None:
    """List container images, load them without a registry, or remove those that nothing uses."""
    if options.action != "load" and options.files:
        raise Failure(f"`images {options.action}` takes no files", "`dev-env images load FILE` loads one")
    if options.action != "prune" and options.remove:
        raise Failure("--remove goes with `images prune`")
    if options.action == "load":
        answer("\n".join(load.load(options.files, say)))
    elif options.action == "prune":
        prune(remove=options.remove)
    elif options.action == "index":
        archives.index()
    elif options.action == "pin":
        images.pin(images.unpinned())
    else:
        answer("\n".join(sorted(name for image in images.listed() for name in image.names)))


def prune(*, remove: bool) -> None:
    """Print the images that nothing uses and nothing keeps; remove them if wanted."""
    unused = images.unused()
    if not unused:
        answer("no image can be removed: each is used by a container, came with the machine, or was loaded by you")
        return
    answer(state.table([[str(image), f"{image.size >> 20} MiB"] for image in unused]))
    if remove:
        images.remove(unused)
        answer(f"removed: {len(unused)}")
    else:
        say("\n`dev-env images prune --remove` removes these; a pod that needs one pulls it again, from a registry")


def do_update(options: argparse.Namespace) -> None:
    """Replace k3s, kubectl and helm with newer versions from a bundle; restore the old ones if these fail."""
    done = update.update(options.source, options.sha256, say, allow_older=options.allow_older, seconds=options.timeout)
    answer("updated: " + ", ".join(done))


def do_recover(options: argparse.Namespace) -> None:
    """Finish or undo an update that was interrupted (services of the system do this)."""
    update.recover(say, starting=options.starting, waiting=options.waiting)


def do_wait(options: argparse.Namespace) -> None:
    """Wait until the cluster is ready."""
    noted = ready.note(ready.wait(say, options.timeout))
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in noted["parts"].items())
    answer(f"dev-env is ready, {noted['seconds_since_boot']:.0f} s after the machine was switched on ({parts}).")
    answer(forwards.summary(forwards.read()))
    answer("`dev-env` tells what it can do.")


def do_names(_: argparse.Namespace) -> None:
    """Keep names and ports of services up to date (for a service of the system)."""
    watching.watch()


def do_forwards(_: argparse.Namespace) -> None:
    """Note which ports of your computer lead into this machine (a service of the system does this)."""
    forwards.note(say)


def parser() -> argparse.ArgumentParser:
    """Return the parser; each command's help is the first line of what does it."""
    top = argparse.ArgumentParser(
        prog="dev-env",
        description="Runs your services in this machine, from helm charts. You need not know Kubernetes. Each command "
        "shows the kubectl and helm commands that it runs.",
        epilog="Begin with: dev-env status, then dev-env up hello, then dev-env services",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, do: Callable[[argparse.Namespace], None], epilog: str = "") -> argparse.ArgumentParser:
        text = (do.__doc__ or "").strip()
        added = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        added.set_defaults(do=do)
        return added

    _add_charts(command)
    _add_machine(command)
    return top


def _add_charts(command: Command) -> None:
    command("status", do_status)
    up = command("up", do_up, FORM)
    up.add_argument("files", nargs="+", metavar="FILE", help="a values file, or the name of a profile")
    up.add_argument("--timeout", type=seconds, default=HELM_SECONDS, metavar="SECONDS",
                    help="how long a chart may take to become ready (default %(default).0f)")  # fmt: skip
    up.add_argument("--force", action="store_true", help="also take over releases that were installed with helm")
    down = command("down", do_down)
    down.add_argument(
        "names", nargs="*", metavar="NAME", help="NAME or NAMESPACE/NAME (default: everything that `up` installed)"
    )
    command("profiles", do_profiles)
    command("services", do_services)
    export = command("export", do_export)
    export.add_argument(
        "--output", "-o", type=Path, metavar="FILE", help="the file to write; packs charts of this machine beside it"
    )
    export.add_argument("--force", action="store_true", help="replace the file if it exists")
    command("share", do_share)


def _add_machine(command: Command) -> None:
    loads = command("images", do_images, IMAGES)
    loads.add_argument("action", nargs="?", choices=["list", "load", "prune", "index", "pin"], default="list")
    loads.add_argument("files", nargs="*", type=Path, metavar="FILE", help="with `load`: archives of `docker save`")
    loads.add_argument("--remove", action="store_true", help="with `prune`: remove these images")
    updates = command("update", do_update)
    updates.add_argument(
        "--from", dest="source", required=True, metavar="FILE|URL", help="a bundle that `invoke bundle` made"
    )
    updates.add_argument("--sha256", default="", help="SHA-256 of the bundle; required for a URL")
    updates.add_argument(
        "--allow-older", action="store_true", help="also install versions that are older than the present ones"
    )
    add_timeout(updates, "how long the cluster may take to become ready")
    recovers = command("recover", do_recover)
    recovers.add_argument(
        "--starting", action="store_true", help="for the system, before it starts k3s: do not stop or start k3s"
    )
    recovers.add_argument("--waiting", action="store_true", help="for the system: wait for an update that is running")
    command("doctor", do_doctor).add_argument(
        "--fix", action="store_true", help="repair what can be repaired without asking you"
    )
    version = command("version", do_version)
    version.add_argument("--json", action="store_true", help="write JSON, for programs")
    add_timeout(command("wait", do_wait), "how long to wait")
    command("names", do_names)
    command("forwards", do_forwards)


def seconds(text: str) -> float:
    """Return a number of seconds that an option gives."""
    found = float(text)
    if not 0 <= found <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text}: 0 to {MOST_SECONDS} seconds")
    return found


def add_timeout(command: argparse.ArgumentParser, text: str) -> None:
    """Add the option that says how long to wait for the cluster."""
    command.add_argument(
        "--timeout", type=seconds, default=ready.WAIT_SECONDS, metavar="SECONDS", help=f"{text} (default %(default).0f)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 something is wrong, 2 not understood, 130 stopped by Ctrl-C."""
    prepare()
    top = parser()
    options = top.parse_args(argv)
    if not hasattr(options, "do"):
        top.print_help()
        return 0
    try:
        options.do(options)
    except Failure as failure:
        say(f"\n{failure}" + (f"\n\n{failure.hint}" if failure.hint else ""))
        return 1
    except OSError as error:
        say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        say("\nstopped")
        return 130
    return 0
