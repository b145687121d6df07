"""What a daemon does with a question on a fresh host: whether it gets ready, its lease, subnet.env and device.

What two hosts cannot have in common (address, MAC, subnet) is replaced by a word, so that two answers can be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path

from tests.interop.questions import DEFAULTS, Question
from tests.lab.agent import Agent
from tests.lab.etcd import EtcdServer
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.namespace import LabError
from tests.lab.processes import kill_in_namespaces

READY, WAITS = 30.0, 5.0
"""Seconds in which a daemon is to be ready or to end; and after which one is said to wait, if that is expected."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`outcome` is `ready`, `waits` or `exit N`; facts are there if it is ready."""

    outcome: str
    facts: Mapping[str, str]


def differences(theirs: Answer, ours: Answer) -> tuple[str, str]:
    """Return what they differ in, as each has it; two empty texts if in nothing."""
    if theirs.outcome != ours.outcome:
        return theirs.outcome, ours.outcome
    names = [name for name in sorted({*theirs.facts, *ours.facts}) if theirs.facts.get(name) != ours.facts.get(name)]
    return _show(theirs, names), _show(ours, names)


def _show(answer: Answer, names: list[str]) -> str:
    return "; ".join(f"{name}={answer.facts.get(name, 'none')}" for name in names)


class Asked:
    """A question put to one daemon, which is started at once; `answer` waits for what it does, and ends it."""

    def __init__(self, lab: Lab, host: Host, daemon: Path, question: Question, prefix: str) -> None:
        assert lab.etcd is not None
        self._etcd: EtcdServer = lab.etcd
        self._host, self._prefix = host, prefix
        self._etcd.ctl("put", f"{prefix}/config", stdin=question.config.encode())
        known = {
            "{etcd}": lab.etcd.endpoint,
            "{host}": lab.etcd.endpoint.removeprefix("http://"),
            "{prefix}": prefix,
            "{address}": str(host.address),
            "{ca}": str(lab.run.directory / "ca.pem"),
            "{cert}": str(lab.run.directory / "client.pem"),
            "{key}": str(lab.run.directory / "client.key"),
        }

        def fill(text: str) -> str:
            for word, value in known.items():
                text = text.replace(word, value)
            return text

        pairs = zip(DEFAULTS[::2], DEFAULTS[1::2], strict=True)
        flags = [fill(word) for pair in pairs if pair[0] not in question.without for word in pair]
        host.agent = Agent(host.name, host.namespace, host.directory, [str(daemon), *flags])
        host.agent.start(*map(fill, question.flags), env={name: fill(value) for name, value in question.env.items()})

    def answer(self, *, waits: bool) -> Answer:
        """Wait, less long if it `waits` as well; read what there is, and end all that runs on the host."""
        agent = self._host.agent
        try:
            agent.wait_ready(WAITS if waits else READY)
        except LabError:
            outcome = "waits" if agent.exit_code is None else f"exit {agent.exit_code}"
            return Answer(outcome, {})
        else:
            return Answer("ready", self._facts())
        finally:
            agent.close()
            kill_in_namespaces([self._host.namespace.name])

    def _facts(self) -> dict[str, str]:
        env = self._host.agent.subnet_env()
        alike = self._alike(env)
        facts = {name: alike(value) for name, value in env.items()}
        leases = json.loads(self._etcd.ctl("get", "--prefix", "-w", "json", f"{self._prefix}/subnets/")).get("kvs", [])
        listed = self._etcd.ctl("get", "--prefix", f"{self._prefix}/subnets/").splitlines()
        facts["key"] = alike(" ".join(listed[::2]).replace(f"{self._prefix}/subnets/", ""))
        facts["value"] = alike(" ".join(listed[1::2]))
        for lease in leases:
            shown = self._etcd.ctl("lease", "timetolive", f"{lease['lease']:x}", "-w", "json")
            facts["ttl"] = str(json.loads(shown)["granted-ttl"])
        for link in json.loads(self._host.namespace.run(["ip", "-j", "-d", "addr", "show"]).stdout):
            if link.get("ifname", "").startswith("flannel"):
                facts[f"device {link['ifname']}"] = alike(_device(link))
        return facts

    def _alike(self, env: Mapping[str, str]) -> Callable[[str], str]:
        words = {str(self._host.address): "ADDRESS"}
        for name in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"):
            if name in env:
                subnet = ip_interface(env[name])
                words |= {str(subnet.ip): f"{name}.1", str(subnet.network.network_address): name}

        def alike(text: str) -> str:
            for word, stands in sorted(words.items(), key=lambda pair: -len(pair[0])):
                text = re.sub(rf"(?<![\w.:]){re.escape(word)}(?![\w.:])", stands, text)
            text = re.sub(r"2001:db8:30::[0-9a-f]+", "ADDRESS6", text)
            return re.sub(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC", text)

        return alike


def _device(link: Mapping[str, object]) -> str:
    """Write down what of a device is flannel's: kind, MTU, VXLAN's settings, addresses that are no link-local ones."""
    info = link.get("linkinfo", {})
    assert isinstance(info, dict)
    data = info.get("info_data", {})
    vxlan = [f"{name} {data[name]}" for name in ("id", "port", "learning") if name in data]
    addresses = link.get("addr_info", [])
    assert isinstance(addresses, list)
    own = [f"{each['local']}/{each['prefixlen']}" for each in addresses if each["scope"] != "link"]
    gbp = ["gbp"] if "gbp" in data else []
    return " ".join([str(info.get("info_kind")), f"mtu {link['mtu']}", *vxlan, *gbp, *own])
