#!/bin/sh
# sshfs is a package of the base; files/40-sshfs lets others see what dev mounts.
set -eu
sshfs --version >&2
