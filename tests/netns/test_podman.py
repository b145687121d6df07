"""Real podman with its CNI backend and our plugin, on two hosts.

podman ── flannel-py ── bridge ── host-local        on each host
h1c1 ── cni0 ── h1 ── flannel.1 ─ ─ ─ flannel.1 ── h2 ── cni0 ── h2c1
"""

from __future__ import annotations

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
            here = engine.host.directory
            assert list((here / "cni").iterdir()) == []
            assert [path.name for path in (here / "addresses/overlay").iterdir() if path.name[0].isdigit()] == []


def test_a_container_waits_for_the_agents_subnet() -> None:
    with ready_hosts(1, LEASED) as lab, ExitStack() as engines:
        [host] = lab.hosts
        engine = Podman(host, lab.run.name)
        engines.callback(engine.close)
        engine.start()
        aside = host.agent.subnet_file.rename(host.directory / "aside")
        with pytest.raises(LabError, match="this host has no subnet yet"):
            engine.run("h1c1", "--rm")
        aside.rename(host.agent.subnet_file)
        engine.run("h1c2")
