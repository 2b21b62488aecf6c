#!/bin/sh
set -eu
install -m 0755 "$PINS/kubectl" /usr/local/bin/kubectl
kubectl completion bash > /etc/bash_completion.d/kubectl
