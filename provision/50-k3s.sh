#!/bin/sh
# Installs k3s; it is never started here, so that no certificate, token or node identity is in the image.
set -eu
install -m 0755 "$PINS/k3s" /usr/local/bin/k3s
for name in crictl ctr; do
    ln -sf k3s "/usr/local/bin/$name"
done
# An image with a kubectl of its own pin keeps that one.
[ -e /usr/local/bin/kubectl ] || ln -s k3s /usr/local/bin/kubectl
for name in k3s crictl; do
    echo "source <($name completion bash)" > "/usr/share/bash-completion/completions/$name"
done

images=/var/lib/rancher/k3s/agent/images
install -D -m 0644 "$PINS/k3s-airgap-images" "$images/k3s-airgap-images.tar.zst"
# A pin whose name begins so is an archive of container images too; k3s tells its compression by the name.
for pin in "$PINS"/image-*; do
    [ -e "$pin" ] || continue
    case $(head -c 4 "$pin" | od -An -tx1 | tr -d ' \n') in
        1f8b*) suffix=tar.gz ;;
        28b52ffd) suffix=tar.zst ;;
        *) suffix=tar ;;
    esac
    install -m 0644 "$pin" "$images/$(basename "$pin").$suffix"
done
# With an (empty) cache file, k3s imports each archive once instead of at every start (k3s 1.33.1 and later). It notes
# their times in whole seconds, and takes one with a fraction for newer, at every start.
: > "$images/.cache.json"
touch --date="@$(date +%s)" "$images"/*
chmod 0700 /var/lib/rancher/k3s/agent
# dev-env reads it as dev; it may come to hold a token.
chgrp dev /etc/rancher/k3s/config.yaml
chmod 0640 /etc/rancher/k3s/config.yaml
chmod 0755 /usr/local/bin/k3s-killall.sh
systemctl --quiet enable k3s.service k3s-shutdown.service dev-env-neighbours.service
