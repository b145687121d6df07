#!/bin/sh
# The etcd host of the lab: etcd.sh ADDRESS
#
#   Debian's etcd -> reachable at ADDRESS, without TLS (for real use: docs/etcd.md) -> the network config, if there is none
#
# It may be run again.
set -eu
address=$1
config=/coreos.com/network/config
export DEBIAN_FRONTEND=noninteractive

{ command -v etcd && command -v etcdctl; } >/dev/null || {
    apt-get -qq update
    apt-get -qq install --yes etcd-server etcd-client
}
# Listening on all addresses: at boot the private network may be there later than etcd.
cat >/etc/default/etcd <<END_OF_FILE
ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379
ETCD_ADVERTISE_CLIENT_URLS=http://$address:2379
END_OF_FILE
systemctl enable --quiet etcd
systemctl restart etcd
[ -n "$(etcdctl get --keys-only "$config")" ] ||
    etcdctl put "$config" '{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}' >/dev/null
echo "etcd answers at http://$address:2379; the network config: $(etcdctl get --print-value-only "$config")"
