#!/bin/sh
set -eu
install -m 0755 "$PINS/helm" /usr/local/bin/helm
helm completion bash > /etc/bash_completion.d/helm
