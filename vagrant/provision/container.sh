#!/bin/sh
# A container on an agent host of the lab, with iproute2 alone: container.sh
#
#   namespace "container": eth0 (the subnet's .2) -- bridge cni0 (FLANNEL_SUBNET's address) -- the host -- flannel.1
#
# It is a unit, lab-container.service, and so there after a reboot as well. It may be run again.
set -eu

cat >/usr/local/sbin/lab-container <<'END_OF_FILE'
#!/bin/sh
# Make the container for the subnet that the agent has leased, again if it is there. Written by the lab's container.sh.
set -eu
value() { sed -n "s,^FLANNEL_$1=\([0-9./]*\)$,\1,p" /run/flannel/subnet.env; }
FLANNEL_SUBNET=$(value SUBNET)
FLANNEL_MTU=$(value MTU)
ip link delete cni0 2>/dev/null || true
ip link delete port0 2>/dev/null || true
ip netns delete container 2>/dev/null || true
ip link add cni0 mtu "$FLANNEL_MTU" type bridge
ip address add "$FLANNEL_SUBNET" dev cni0
ip link set cni0 up
ip netns add container
ip link add port0 mtu "$FLANNEL_MTU" master cni0 type veth peer name eth0 mtu "$FLANNEL_MTU" netns container
ip link set port0 up
ip -n container link set lo up
ip -n container link set eth0 up
ip -n container address add "${FLANNEL_SUBNET%.*}.2/${FLANNEL_SUBNET#*/}" dev eth0
ip -n container route add default via "${FLANNEL_SUBNET%/*}"
END_OF_FILE
chmod 755 /usr/local/sbin/lab-container

cat >/etc/systemd/system/lab-container.service <<'END_OF_FILE'
[Unit]
Description=the lab's container
Wants=flanneld-py.service
After=flanneld-py.service
StartLimitIntervalSec=0
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-container
Restart=on-failure
RestartSec=5
[Install]
WantedBy=multi-user.target
END_OF_FILE
systemctl daemon-reload
systemctl enable --quiet lab-container
systemctl restart lab-container
echo "the container: $(ip -n container -brief -4 address show dev eth0)"
