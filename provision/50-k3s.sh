#!/bin/sh
# Installs k3s; it is never started here, so that no certificate, token or node identity is in the image.
set -eu
install -m 0755 "$PINS/k3s" /usr/local/bin/k3s
for name in crictl ctr; do
    ln -sf k3s "/usr/local/bin/$name"
done
# An image with a kubectl of its own pin keeps that one.
[ -e /usr/local/bin/kubectl ] || ln -s k3s /usr/local/bin/kubectl

images=/var/lib/rancher/k3s/agent/images
install -D -m 0644 "$PINS/k3s-airgap-images" "$images/k3s-airgap-images.tar.zst"
# With an (empty) cache file, k3s imports each archive once instead of at every start (k3s 1.33.1 and later).
: > "$images/.cache.json"
chmod 0700 /var/lib/rancher/k3s/agent
chmod 0600 /etc/rancher/k3s/config.yaml
systemctl --quiet enable k3s.service
