"""What the modules with Invoke's tasks share: how a task is made, and the help of options that several have."""

from __future__ import annotations

from functools import partial

from invoke.tasks import task as invoke_task

# Invoke would give short flags to whichever letters are free: `-h` would be `--ssh-port`.
task = partial(invoke_task, auto_shortflags=False)

DEB_MIRROR = "URL of a Debian mirror, or a whole `deb …` line; several are separated by semicolons"
ACCELERATOR = "kvm or tcg (default: found out by running guest code)"
IMAGE = "an image of images.yaml (default: the one that images.yaml names)"
BUNDLE = "file of `invoke bundle-inputs`: all that is needed comes from it, and nothing from a network"
JSON = "write JSON lines to standard output, for programs"
MIRROR = "directory or URL with pinned files, which is tried first; may be given again"
MATRIX = "`full` boots each file in every machine of its format; `default` boots it once"
