#!/bin/sh
# An agent host of the lab: agent.sh NETWORK ETCD FOLDER
#
#   the newest package in FOLDER -> settings: etcd, and the interface that is in NETWORK -> the unit, until it is ready
#
# It may be run again, with a newer package as well.
set -eu
network=$1 etcd=$2 folder=$3
export DEBIAN_FRONTEND=noninteractive

fail() {
    echo "$1" >&2
    exit 1
}

# The default route is of no use here: it goes through Vagrant's own interface, behind NAT, where every machine may have
# the same address and none reaches another.
interface=$(ip -oneline -4 address show to "$network" | awk '{ print $2; exit }')
[ -n "$interface" ] || fail "no interface has an address in $network: it is what the Vagrantfile gives as private network"

# shellcheck disable=SC2012 -- names of ours, sorted by time
package=$(ls -t "$folder"/flanneld-py_*_"$(dpkg --print-architecture)".deb 2>/dev/null | head -n 1)
[ -n "$package" ] || fail "no package in $folder: run \`make deb\` in the clone, then \`vagrant rsync; vagrant provision\`"

{ command -v python3 && command -v nft; } >/dev/null || {
    apt-get -qq update
    apt-get -qq install --yes python3 nftables
}
apt-get -qq install --yes --reinstall --option Dpkg::Options::=--force-confold "$package"

cat >/etc/default/flanneld-py <<END_OF_FILE
FLANNELD_ETCD_ENDPOINTS=http://$etcd:2379
FLANNELD_IFACE=$interface
FLANNELD_IP_MASQ=true
END_OF_FILE
echo net.ipv4.ip_forward=1 >/etc/sysctl.d/flanneld-py.conf
sysctl --quiet --load /etc/sysctl.d/flanneld-py.conf

systemctl enable --quiet flanneld-py
timeout 300 systemctl restart flanneld-py || {
    systemctl status --no-pager flanneld-py >&2 || true
    fail "flanneld-py was not ready within five minutes; is etcd up at $etcd?"
}
echo "flanneld-py is ready on $interface: $(grep FLANNEL_SUBNET /run/flannel/subnet.env)"
