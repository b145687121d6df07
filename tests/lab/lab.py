"""The lab itself: builds what a Plan says, holds it, and takes it down.

    start:  leftovers of dead runs removed -> underlay and hosts -> etcd -> agents (or manual.py) -> containers
    close:  agents and etcd ended -> every process, namespace and directory of the run removed

Start it from the main thread (see namespace.py). `close` may be called at any moment and more than once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Interface
from itertools import permutations
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.agent import Agent
from tests.lab.etcd import EtcdServer
from tests.lab.host import Container, Host
from tests.lab.manual import Vtep, program
from tests.lab.measure import ping
from tests.lab.namespace import LabError, Namespace, batch
from tests.lab.run import Run, claim, leftovers
from tests.lab.topology import VXLAN_OVERHEAD, Plan, mac
from tests.patience import within

CLIENT_PORT, PEER_PORT = 2379, 2380
DEFAULT_FLANNELD = Path(sys.executable).parent / "flanneld-py"


def _silent(_: str) -> None:
    """Say nothing."""


class Lab:
    """Hosts, etcd, agents and containers of one run. `progress` is told each finished step and its duration."""

    def __init__(self, plan: Plan, progress: Callable[[str], None] = _silent) -> None:
        self.plan = plan
        self.hosts: list[Host] = []
        self.etcd: EtcdServer | None = None
        self.start_seconds = 0.0
        self._progress = progress
        self._run: Run | None = None

    @property
    def run(self) -> Run:
        """Name and directory. Raises LabError before `start` and after `close`."""
        if self._run is None:
            raise LabError("the lab is not running: call start()")
        return self._run

    @property
    def core(self) -> Namespace:
        """The namespace of the underlay bridge br0 and of etcd."""
        return self.run.namespace("core")

    @property
    def containers(self) -> list[Container]:
        """All containers, host by host."""
        return [container for host in self.hosts for container in host.containers]

    def pairs(self) -> list[tuple[Container, Container]]:
        """Every ordered pair of containers."""
        return list(permutations(self.containers, 2))

    def start(self) -> None:
        """Build everything. Raises LabError; what was built until then is removed."""
        began = time.monotonic()
        with ExitStack() as undo:
            undo.callback(self.close)
            for run in leftovers():
                with self._step(f"removed what run {run.name} left"):
                    run.remove()
            self._run = claim()
            with self._step(f"underlay {self.plan.underlay}, {self.plan.hosts} hosts"):
                self._build_underlay()
            if self.plan.overlay != "manual":
                with self._step(f"etcd at {self.plan.gateway}"):
                    self._start_etcd()
            self._build_overlay()
            undo.pop_all()
        self.start_seconds = time.monotonic() - began

    def close(self) -> None:
        """Take everything down. Raises LabError if something cannot be removed."""
        if self._run is None:
            return
        for host in self.hosts:
            host.agent.close()
        if self.etcd is not None:
            self.etcd.kill()
        self._run.remove()
        self._run = None

    def attach(self, host: Host) -> None:
        """Make the containers of a host from its agent's subnet file."""
        env = host.agent.subnet_env()
        host.attach(self.run, self.plan.containers, IPv4Interface(env["FLANNEL_SUBNET"]), int(env["FLANNEL_MTU"]))

    def with_agents(self, *flags: Sequence[str]) -> Self:
        """Start the agents, each with its flags, and containers; return once every pair answers. Raises LabError."""
        for host, own in zip(self.hosts, flags, strict=True):
            host.agent.start(*own)
        for host in self.hosts:
            host.agent.wait_ready()
            self.attach(host)
        if silent := self.wait_connected():
            raise LabError(f"no answer between {', '.join(f'{one.name} and {other.name}' for one, other in silent)}")
        return self

    def wait_connected(self, timeout: float = 15) -> list[tuple[Container, Container]]:
        """Ping every pair until it answers; return the pairs that did not within `timeout` seconds."""
        waiting, deadline = self.pairs(), within(timeout)
        while waiting and time.monotonic() < deadline:
            waiting = [pair for pair in waiting if ping(*pair, count=1, patience=0.3).received == 0]
        return waiting

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build_underlay(self) -> None:
        plan, core = self.plan, self.core.name
        self.hosts = [self._host(number) for number in range(1, plan.hosts + 1)]
        # Both ends of every veth are born inside their namespaces: the machine's own never sees a device.
        lines = [f"netns add {core}"]
        for host in self.hosts:
            host.directory.mkdir()
            name, ether = host.namespace.name, mac(host.address)
            lines += [
                f"netns add {name}",
                f"link add name eth0 netns {name} address {ether} mtu {plan.underlay_mtu} type veth"
                f" peer name {host.name} netns {core}",
            ]
        batch("ip", lines)
        self.core.ip(
            "link set lo up",
            f"link add br0 address {mac(plan.gateway)} mtu {plan.underlay_mtu} type bridge",
            *(f"link set {host.name} mtu {plan.underlay_mtu} master br0 up" for host in self.hosts),
            f"addr add {plan.gateway}/{plan.underlay.prefixlen} dev br0",
            "link set br0 up",
        )
        for host in self.hosts:
            host.namespace.ip(
                "link set lo up",
                f"addr add {host.address}/{plan.underlay.prefixlen} dev eth0",
                "link set eth0 up",
                f"route add default via {plan.gateway}",
            )
            host.namespace.write_sysctl("net.ipv4.ip_forward", "1")

    def _host(self, number: int) -> Host:
        plan, name = self.plan, f"h{number}"
        namespace, directory = self.run.namespace(name), self.run.directory / name
        etcd = f"http://{plan.gateway}:{CLIENT_PORT}"
        argv = [str(plan.flanneld or DEFAULT_FLANNELD), "--etcd-endpoints", etcd, "--etcd-prefix", plan.etcd_prefix]
        own = [argument.replace("{dir}", str(directory)).replace("{host}", name) for argument in plan.agent_args]
        agent = Agent(name, namespace, directory, [*argv, "--iface", "eth0", *own])
        return Host(name, namespace, plan.host_address(number), directory, agent)

    def _start_etcd(self) -> None:
        self.etcd = EtcdServer(
            self.run.directory / "etcd",
            listen=str(self.plan.gateway),
            client_port=CLIENT_PORT,
            peer_port=PEER_PORT,
            namespace=self.core.name,
        )
        try:
            self.etcd.start()
            self.etcd.ctl("put", f"{self.plan.etcd_prefix}/config", stdin=self.plan.network_config().encode())
        except RuntimeError as error:
            raise LabError(str(error)) from error

    def _build_overlay(self) -> None:
        match self.plan.overlay:
            case "none":
                return
            case "manual":
                with self._step("overlay by hand, containers"):
                    self._program_by_hand()
            case "agents":
                with self._step("agents ready"):
                    for host in self.hosts:
                        host.agent.start()
                    for host in self.hosts:
                        host.agent.wait_ready()
                with self._step("containers"):
                    for host in self.hosts:
                        self.attach(host)

    def _program_by_hand(self) -> None:
        plan = self.plan
        subnets = [plan.manual_subnet(number) for number in range(1, plan.hosts + 1)]
        vteps = [
            Vtep(host.address, mac(host.address, first=0x06), subnet.network)
            for host, subnet in zip(self.hosts, subnets, strict=True)
        ]
        for host, subnet, own in zip(self.hosts, subnets, vteps, strict=True):
            program(host.namespace, own, [peer for peer in vteps if peer is not own], plan.underlay_mtu)
            host.attach(self.run, plan.containers, subnet, plan.underlay_mtu - VXLAN_OVERHEAD)

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._progress(f"{time.monotonic() - began:6.2f} s  {what}")
