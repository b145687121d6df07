"""Booted Debian machines: the package, the units, systemd, a reboot. `make test-boot`; needs root and systemd-nspawn.

   core namespace: etcd, bridge br0
    |                      |
h1 (tests/lab)       machine: systemd-nspawn, booted, flanneld-py from the Debian package
agent, container     host0 on br0, a network namespace of its own that ends with each boot
"""
