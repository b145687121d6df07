"""What a Docker host is to answer, whatever dockerd's version and the backend: one list, and what is expected of each.

    h1c1 ── h1 ── overlay ── h2 ── h2c1, which publishes its port 80 as 8080
                              └──── h2c2, which publishes nothing
    core: a stranger on the underlay, and the world

Up to Docker 27 strangers reach containers directly, by a route through their host; since 28 Docker keeps them out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

from tests.lab.docker import Docker
from tests.lab.engine import ready_hosts
from tests.lab.host import Container, Host
from tests.lab.image import PAGE, SERVE
from tests.lab.lab import Lab
from tests.lab.measure import ping
from tests.lab.namespace import Namespace
from tests.netns.conftest import LEASED


@dataclass(frozen=True, slots=True)
class Site:
    """Two hosts with their engines, and containers on the default bridge, which serve a page on port 80."""

    lab: Lab
    engines: tuple[Docker, Docker]
    here: Container
    there: Container
    unpublished: Container

    @property
    def containers(self) -> tuple[Container, Container]:
        """One on each host."""
        return self.here, self.there

    @property
    def protected(self) -> bool:
        """Whether Docker keeps machines on the underlay from its containers."""
        return self.engines[0].version >= (28,)


@contextmanager
def docker_site(
    *,
    config: Mapping[str, object] = LEASED,
    prepare: Callable[[Lab], None] | None = None,
    before_engines: Callable[[Lab], None] | None = None,
    daemon: Callable[[Host], Mapping[str, object]] = lambda _: {},
    env: Mapping[str, str] | None = None,
    backend: str = "vxlan",
    agent_args: tuple[str, ...] = (),
) -> Iterator[Site]:
    """Make one; `daemon` is what stands in a host's daemon.json, `env` the environment of its agent and engine."""
    hosts = ready_hosts(2, config, prepare, backend=backend, agent_args=agent_args, env=env)
    with hosts as lab, ExitStack() as running:
        engines = [Docker(host, lab.run.name) for host in lab.hosts]
        if before_engines is not None:
            before_engines(lab)
        for engine in engines:
            running.callback(engine.close)
            engine.start(config=daemon(engine.host), env=env)
        one, other = engines
        here = one.run("h1c1", command=SERVE)
        there = other.run("h2c1", "--publish", "8080:80", command=SERVE)
        unpublished = other.run("h2c2", command=SERVE)
        for pair in ((here, there), (there, here), (here, unpublished)):
            ping(*pair, count=1, patience=3)  # Addresses are resolved on the way: not the loss that is meant.
        yield Site(lab, (one, other), here, there, unpublished)


def gets(source: Namespace, url: str) -> bool:
    """Whether the page is got from there."""
    return source.run(["curl", "--silent", "--max-time", "3", url], check=False).stdout == PAGE


def stranger_gets(site: Site, target: Container, by: Host) -> bool:
    """Whether core gets a container's page by way of a host that it has a route through."""
    core, route = site.lab.core, f"{target.address}/32 via {by.address}"
    core.ip(f"route add {route}")
    try:
        return gets(core, f"http://{target.address}/")
    finally:
        core.ip(f"route del {route}")


def seen_as(site: Site) -> IPv4Address | None:
    """The address that a container of the other host has for the one that asks."""
    before = len(site.engines[1].logs("h2c1"))
    gets(site.here.namespace, f"http://{site.there.address}/")
    found = re.search(r"\[::ffff:([0-9.]+)\]", site.engines[1].logs("h2c1")[before:])
    return IPv4Address(found[1]) if found else None


def _published(site: Site) -> str:
    return f"http://{site.lab.hosts[1].address}:8080/"


QUESTIONS: dict[str, Callable[[Site], bool]] = {
    "ping": lambda site: ping(site.here, site.there).loss == 0,
    "ping back": lambda site: ping(site.there, site.here).loss == 0,
    "ping from the other host": lambda site: ping(site.lab.hosts[0], site.there).loss == 0,
    "ping to the other host": lambda site: ping(site.there, site.lab.hosts[0]).loss == 0,
    "TCP": lambda site: gets(site.here.namespace, f"http://{site.there.address}/"),
    "TCP, nothing published": lambda site: gets(site.here.namespace, f"http://{site.unpublished.address}/"),
    "TCP on one host": lambda site: gets(site.there.namespace, f"http://{site.unpublished.address}/"),
    "own address": lambda site: seen_as(site) == site.here.address,
    "published port": lambda site: gets(site.here.namespace, _published(site)),
    "published port from the other host": lambda site: gets(site.lab.hosts[0].namespace, _published(site)),
    "published port for a stranger": lambda site: gets(site.lab.core, _published(site)),
    "way out": lambda site: (
        site.engines[0].execute("h1c1", "ping", "-c1", "-w5", str(site.lab.plan.gateway)).returncode == 0
    ),
}
"""What has to be true everywhere."""

STRANGER: dict[str, Callable[[Site], bool]] = {
    "directly, published": lambda site: stranger_gets(site, site.there, site.lab.hosts[1]),
    "directly, not published": lambda site: stranger_gets(site, site.unpublished, site.lab.hosts[1]),
    "by another host": lambda site: stranger_gets(site, site.unpublished, site.lab.hosts[0]),
}
"""By which ways a stranger gets into containers."""


def failing(site: Site) -> list[str]:
    """The questions with another answer than a user of the overlay wants."""
    return [question for question, ask in QUESTIONS.items() if not ask(site)]


def open_to_strangers(site: Site) -> list[str]:
    """The ways that are open."""
    return [way for way, ask in STRANGER.items() if ask(site)]
