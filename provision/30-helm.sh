#!/bin/sh
set -eu
install -m 0755 "$PINS/helm" /usr/local/bin/helm
echo 'source <(helm completion bash)' > /usr/share/bash-completion/completions/helm
