#!/bin/sh
# Stops k3s and every container: stopping k3s.service alone leaves them running (KillMode=process). Run as root.
# Containers get SIGTERM first, and some seconds to close their files ($1, else 10).
set -eu
systemctl stop k3s.service
shims=$(pgrep -f '/k3s/data/[^/]*/bin/containerd-shim' || true)
containers=$(for shim in $shims; do pgrep -P "$shim" || true; done)
signal() { # to all that are left; fails when none is
    left=1
    for process in $containers; do
        kill "-$1" "$process" 2> /dev/null && left=0
    done
    return $left
}
tries=$((${1:-10} * 5))
signal TERM || true
while [ "$tries" -gt 0 ] && signal 0; do
    tries=$((tries - 1))
    sleep 0.2
done
signal KILL || true
for shim in $shims; do
    kill -KILL "$shim" 2> /dev/null || true
done
for folder in /run/k3s /var/lib/kubelet/pods /run/netns/cni-; do
    awk -v folder="$folder" 'index($2, folder) == 1 { print $2 }' /proc/self/mounts | sort -r |
        while read -r mounted; do umount -l "$mounted"; done
done
for link in cni0 flannel.1; do
    ip link delete "$link" 2> /dev/null || true
done
