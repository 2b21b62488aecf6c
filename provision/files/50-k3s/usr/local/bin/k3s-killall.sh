#!/bin/sh
# Stops k3s and every container: stopping k3s.service alone leaves them running (KillMode=process). Run as root.
set -eu
systemctl stop k3s.service
for shim in $(pgrep -f '/k3s/data/[^/]*/bin/containerd-shim' || true); do
    for child in $(pgrep -P "$shim" || true); do
        kill -KILL "$child" 2> /dev/null || true
    done
    kill -KILL "$shim" 2> /dev/null || true
done
for folder in /run/k3s /var/lib/kubelet/pods /run/netns/cni-; do
    awk -v folder="$folder" 'index($2, folder) == 1 { print $2 }' /proc/self/mounts | sort -r |
        while read -r mounted; do umount -l "$mounted"; done
done
for link in cni0 flannel.1; do
    ip link delete "$link" 2> /dev/null || true
done
