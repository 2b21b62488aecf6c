#!/bin/sh
# The command dev-env, the services that keep it working, and the sample chart with its container image.
set -eu
python3 -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib/dev-env
/usr/local/bin/dev-env --help > /dev/null
systemctl --quiet enable dev-env-ready.target dev-env-names.service dev-env-forwards.service \
    dev-env-recover.service dev-env-recover-killed.path

# kubectl and helm find the cluster in every session, also in those that read no shell profile.
echo 'KUBECONFIG=/etc/rancher/k3s/k3s.yaml' >> /etc/environment

# Hints say `journalctl -u k3s`.
usermod --append --groups systemd-journal dev

# Where the sample expects the files that the host shares.
install -d -o dev -g dev /home/dev/src

# The sample's container image: one static program of Debian, in the form of `docker save`.
work=$(mktemp -d)
mkdir -p "$work/root/bin" "$work/root/www"
install -m 0755 "$(command -v busybox)" "$work/root/bin/busybox"
install -m 0755 /usr/local/share/dev-env/image/serve "$work/root/bin/serve"
cd "$work"
pack() { tar --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$@"; }
pack layer.tar -C root .
layer=$(sha256sum layer.tar | cut -d ' ' -f 1)
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["busybox","sh","/bin/serve"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}\n' \
    "$(dpkg --print-architecture)" "$layer" > config.json
printf '[{"Config":"config.json","RepoTags":["localhost/hello:1"],"Layers":["layer.tar"]}]\n' > manifest.json
# k3s (1.36 and before) starts its pods while it still imports the archive that it takes last, by name: a small one.
archive=/var/lib/rancher/k3s/agent/images/zz-hello.tar
pack "$archive" manifest.json config.json layer.tar
# Of a whole second, or k3s imports it at every start: see 50-k3s.sh.
touch --date="@$(date +%s)" "$archive"
rm -rf "$work"

# Which container images the machine brings: they are never removed, and brought back if they are.
/usr/local/bin/dev-env images index
