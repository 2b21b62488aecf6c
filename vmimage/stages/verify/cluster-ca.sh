#!/bin/sh
# Prints the digest of the cluster's authority, which is made when the cluster first starts.
if [ -e /etc/systemd/system/k3s.service ]; then
    # `start` waits for what is starting already.
    sudo systemctl start dev-env-ready.target
    sudo sha256sum /var/lib/rancher/k3s/server/tls/server-ca.crt
fi
