"""Real podman with its CNI backend and our plugin, on two hosts.

podman ── flannel-py ── bridge ── host-local        on each host
h1c1 ── cni0 ── h1 ── flannel.1 ─ ─ ─ flannel.1 ── h2 ── cni0 ── h2c1
"""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from tests.lab.engine import fetch, ready_hosts
from tests.lab.image import PAGE, SERVE
from tests.lab.measure import ping
from tests.lab.namespace import LabError
from tests.lab.podman import Podman
from tests.netns.conftest import LEASED

pytestmark = pytest.mark.root


def test_a_published_port_and_what_is_left_after_the_containers() -> None:
    with ready_hosts(2, LEASED) as lab, ExitStack() as engines:
        one, other = (Podman(host, lab.run.name) for host in lab.hosts)
        for engine in (one, other):
            engines.callback(engine.close)
            engine.start()
        near = one.run("h1c1")
        far = other.run("h2c1", "--publish", "8080:80", command=SERVE)
        assert ping(near, far).loss == 0
        url = f"http://{lab.hosts[1].address}:8080/"
        assert fetch(lab.hosts[0], url) == fetch(near, url) == PAGE
        for engine, name in ((one, "h1c1"), (other, "h2c1")):
            engine.remove(name)
            assert left(engine) == []


def left(engine: Podman) -> list[str]:
    """What our plugin, host-local and the bridge keep of containers."""
    here = engine.host.directory
    records = [path.name for place in ("cni", "addresses/overlay") for path in (here / place).glob("*")]
    shown = engine.host.namespace.run(["ip", "-j", "link", "show", "type", "veth"]).stdout
    veths = [link["ifname"] for link in json.loads(shown) if link["ifname"] != "eth0"]
    return veths + [name for name in records if name not in ("lock", "last_reserved_ip.0")]


def test_a_container_is_refused_until_there_is_what_it_needs() -> None:
    with ready_hosts(1, LEASED) as lab, ExitStack() as engines:
        [host] = lab.hosts
        engine = Podman(host, lab.run.name)
        engines.callback(engine.close)
        engine.start()
        aside = host.agent.subnet_file.rename(host.directory / "aside")
        with pytest.raises(LabError, match="this host has no subnet yet"):
            engine.run("h1c1", "--rm")
        host.agent.subnet_file.write_text("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.99.7.1/24\n")
        with pytest.raises(LabError, match="it is of another network"):
            engine.run("h1c2", "--rm")
        aside.rename(host.agent.subnet_file)
        network = host.directory / "net.d/overlay.conflist"
        right = network.read_text()
        network.write_text(right.replace('"hairpinMode"', '"type": "absent", "hairpinMode"'))
        with pytest.raises(LabError, match="there is no plugin absent in CNI_PATH"):
            engine.run("h1c3", "--rm")
        assert left(engine) == []
        network.write_text(right)
        engine.run("h1c4")
        assert len(left(engine)) == 3, "a record, an address, an interface"
