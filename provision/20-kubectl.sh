#!/bin/sh
set -eu
install -m 0755 "$PINS/kubectl" /usr/local/bin/kubectl
# Made when the first Tab asks for it: always that of the installed version.
echo 'source <(kubectl completion bash)' > /usr/share/bash-completion/completions/kubectl
