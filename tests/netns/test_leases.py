"""A host's own lease on real hosts with a real etcd: given back, of another size, and known again after a new MAC."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.host import Host
from tests.lab.lab import DEFAULT_FLANNELD, Lab
from tests.netns.conftest import LEASED, MakeLab
from tests.netns.test_agent import etcd, lease_key, routes, subnet, until

pytestmark = pytest.mark.root


def leased(lab: Lab, subnet: str) -> bool:
    return etcd(lab).ctl("get", "--keys-only", lease_key(subnet)) != ""


def release(lab: Lab, host: Host) -> tuple[int, str]:
    command = [str(DEFAULT_FLANNELD), "--release", "--etcd", etcd(lab).endpoint, "--iface", "eth0"]
    done = host.namespace.run([*command, "--subnet-file", str(host.agent.subnet_file)], check=False, timeout=30)
    return done.returncode, done.stdout + done.stderr


def test_a_hosts_own_lease(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(hosts=2, containers=0, overlay="agents", config=LEASED)
    one, two = lab.hosts
    had = subnet(one)

    code, said = release(lab, one)
    assert (code, leased(lab, had)) == (1, True)
    assert "another flanneld-py on this host has subnet file" in said
    assert one.agent.terminate() == 0
    assert release(lab, one) == (0, f"gave {had} back\n")
    assert not leased(lab, had)
    until(lambda: had not in routes(two), "its peer has heard of it")
    assert release(lab, one) == (0, "this host has no lease\n")
    one.agent.start()
    one.agent.wait_ready()
    assert subnet(one) == had, "the subnet file asks for it, and it is free"

    systemctl = tmp_path / "systemctl"
    path = {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    for state, stays in (("running", True), ("stopping", False)):
        systemctl.write_text(f"#!/bin/sh\necho {state}\n")
        systemctl.chmod(0o755)
        assert one.agent.terminate() == 0
        one.agent.start("--release-on-stop", env=path)
        one.agent.wait_ready()
        assert one.agent.terminate() == 0
        assert leased(lab, had) == stays
        one.agent.start()
        one.agent.wait_ready()

    one.namespace.ip("link set eth0 address 02:11:22:33:44:55")
    assert one.agent.terminate() == 0
    one.agent.start()
    one.agent.wait_ready()
    assert subnet(one) == had, "of the same boot: there is nobody to wait for"

    assert release(lab, two)[0] == 1
    assert two.agent.terminate() == 0
    assert release(lab, two)[0] == 0
    two.agent.subnet_file.unlink()
    two.agent.start("--subnet-len", "28", "--lease-ttl=10")
    two.agent.wait_ready()
    assert subnet(two).endswith("/28")
    until(lambda: subnet(two) in routes(one), "its peer reaches it")
