"""Three etcd members as deploy/etcd has them, TLS both ways and a role for agents; and agents with one of them gone.

h1c1 ── h1 .11 ──┐                   ┌── etcd1 .5
h2c1 ── h2 .12 ──┼── br0, 10.0.0.0/24 ┼── etcd2 .6      a namespace each, /etc/default/etcd from deploy/etcd/etcd.env
h3c1 ── h3 .13 ──┘                   └── etcd3 .7
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flanneld_py.registry.lifetime import TTL
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.lab.namespace import LabError, Namespace
from tests.lab.programs import program, search_path
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import PREFIX, complete, lease_key, subnet, until

pytestmark = [pytest.mark.root, pytest.mark.etcd]

DEPLOY = Path(__file__).parents[2] / "deploy/etcd"
MEMBERS = {"etcd1": "10.0.0.5", "etcd2": "10.0.0.6", "etcd3": "10.0.0.7"}
ENDPOINTS = tuple(f"https://{address}:2379" for address in MEMBERS.values())


class Member:
    """One etcd, with the settings file of the example and what is said to differ on each member."""

    def __init__(self, lab: Lab, pki: Path, name: str) -> None:
        self.name, self.address = name, MEMBERS[name]
        self.endpoint = f"https://{self.address}:2379"
        self._namespace: Namespace = lab.run.namespace(name)
        self._log = lab.run.directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = dict(os.environ)
        for line in (DEPLOY / "etcd.env").read_text().splitlines():
            if line and not line.startswith("#"):
                variable, value = line.split("=", 1)
                if not variable.startswith("ETCD_INITIAL_CLUSTER"):
                    value = value.replace("10.0.0.5", self.address).replace("etcd1", name)
                value = value.replace("/etc/etcd", str(pki / name)).replace("/var/lib", str(lab.run.directory / name))
                self._environment[variable] = value

    def start(self) -> None:
        with self._log.open("ab") as log:
            # Killed processes lose nothing without fsync; only power failures do.
            self._process = self._namespace.popen(
                [program("etcd"), "--unsafe-no-fsync", "--logger=zap"], stdout=log, stderr=log, env=self._environment
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


class Cluster:
    """The members, their certificates in `pki`, and etcdctl in the core namespace as any of the clients."""

    def __init__(self, lab: Lab, pki: Path) -> None:
        self.lab, self.pki = lab, pki
        for name, address in MEMBERS.items():
            certificates(pki, "member", name, address)
        certificates(pki, "client", "root")
        for host in lab.hosts:
            certificates(pki, "client", host.name, "flannel")
        self.members = [Member(lab, pki, name) for name in MEMBERS]

    def ctl(self, user: str, *arguments: str, script: Path | None = None) -> str:
        """Run etcdctl, or a script that does, with a client's certificate. Raises LabError."""
        own = self.pki / user
        where = [f"ETCDCTL_ENDPOINTS={','.join(ENDPOINTS)}", f"ETCDCTL_CACERT={own}/ca.crt"]
        proof = [f"ETCDCTL_CERT={own}/client.crt", f"ETCDCTL_KEY={own}/client.key"]
        command = ["env", f"PATH={search_path('etcdctl')}", "ETCDCTL_API=3", *where, *proof]
        return self.lab.core.run([*command, script or program("etcdctl"), *arguments]).stdout

    def healthy(self) -> bool:
        with suppress(LabError):  # It fails if one member does not answer.
            self.ctl("root", "endpoint", "health")
            return True
        return False

    def lease(self, host: Host) -> dict[str, int]:
        """Return `lease`, `create_revision` and so on of a host's lease; nothing if there is none."""
        found = json.loads(self.ctl("root", "get", lease_key(subnet(host)), "-w", "json")).get("kvs")
        return dict(found[0]) if found else {}

    def put_lease(self, number: int) -> None:
        """Write the lease of another host."""
        data = {"VNI": 1, "VtepMAC": f"02:99:00:00:00:0{number}"}
        value = {"PublicIP": f"10.0.0.{100 + number}", "BackendType": "vxlan", "BackendData": data}
        self.ctl("root", "put", lease_key(f"10.42.{240 + number}.0/24"), json.dumps(value))

    def take_lease(self, host: Host) -> None:
        """Delete a host's lease, and wait until it has another one for the same subnet."""
        was = self.lease(host)["lease"]
        self.ctl("root", "del", lease_key(subnet(host)))
        until(lambda: self.lease(host).get("lease", was) != was, f"{host.name} claims its lease again", timeout=20)

    def wait_peers(self, count: int) -> None:
        hosts = self.lab.hosts
        until(lambda: all(complete(host, count) for host in hosts), f"{count} peers on each host", timeout=20)

    def renew(self, host: Host) -> int:
        """Renew a host's lease, as its agent does once a minute; return its new TTL in seconds."""
        arguments = [",".join(ENDPOINTS), str(self.pki / host.name), str(self.lease(host)["lease"])]
        return int(self.lab.core.run([sys.executable, "-m", "tests.netns.renewal", *arguments]).stdout)

    def start_agent(self, host: Host) -> None:
        own = self.pki / host.name
        proof = ("--etcd-certfile", f"{own}/client.crt", "--etcd-keyfile", f"{own}/client.key")
        host.agent.start("--etcd-endpoints", ",".join(ENDPOINTS), "--etcd-cafile", f"{own}/ca.crt", *proof)


def certificates(folder: Path, *arguments: str) -> None:
    subprocess.run([DEPLOY / "certificates", folder, *arguments], check=True, capture_output=True)


@pytest.fixture
def cluster(make_lab: MakeLab, tmp_path: Path) -> Iterator[Cluster]:
    lab = make_lab(hosts=3, overlay="none", underlay=IPv4Network("10.0.0.0/24"))
    cluster = Cluster(lab, tmp_path / "pki")
    for member in cluster.members:
        namespace = lab.run.namespace(member.name)
        namespace.create()
        lab.core.ip(
            f"link add {member.name} master br0 type veth peer name eth0 netns {namespace.name}",
            f"link set {member.name} up",
        )
        namespace.ip(f"addr add {member.address}/24 dev eth0", "link set eth0 up")
    try:
        for member in cluster.members:
            member.start()
        until(lambda: cluster.healthy(), "three members", timeout=30)
        cluster.ctl("root", "put", f"{PREFIX}/config", lab.plan.network_config())
        cluster.ctl("root", script=DEPLOY / "role")
        yield cluster
    except AssertionError:
        for member in cluster.members:
            print(f"--- {member.name}\n{member.log_tail()}")
        raise
    finally:
        for member in cluster.members:
            member.kill()


def test_agents_keep_working_with_any_one_of_three_members_gone(cluster: Cluster) -> None:
    first, second, newcomer = hosts = cluster.lab.hosts
    for host in (first, second):
        cluster.start_agent(host)
    for host in (first, second):
        host.agent.wait_ready()

    for number, member in enumerate(cluster.members):
        member.kill()
        if number == 0:
            cluster.start_agent(newcomer)
            newcomer.agent.wait_ready()
        else:
            cluster.take_lease(newcomer)
        cluster.put_lease(number)
        cluster.wait_peers(len(hosts) + number)
        assert cluster.renew(hosts[number]) == TTL
        member.start()
        until(cluster.healthy, f"{member.name} is back", timeout=30)

    for host in hosts:
        cluster.lab.attach(host)
    assert cluster.lab.wait_connected() == []


def test_an_agents_certificate_is_good_for_leases_and_nothing_else(cluster: Cluster) -> None:
    mine = f"{PREFIX}/subnets/10.42.7.0-24"
    cluster.ctl("h1", "put", mine, "{}")
    cluster.ctl("h1", "del", mine)
    cluster.ctl("h1", "get", f"{PREFIX}/config")
    for command in (
        ("put", f"{PREFIX}/config", "{}"),
        ("put", f"{PREFIX}/elsewhere", ""),
        ("put", f"{PREFIX}-2/subnets/10.42.7.0-24", "{}"),
        ("put", "/", ""),
        ("get", "/registry"),
        ("get", "", "--prefix"),
        ("user", "add", "other:secret"),
        ("role", "grant-permission", "flannel", "readwrite", "/"),
        ("auth", "disable"),
    ):
        with pytest.raises(LabError, match="permission denied"):
            cluster.ctl("h1", *command)

    cluster.ctl("root", "/other", script=DEPLOY / "role")
    cluster.ctl("h1", "put", "/other/subnets/10.43.7.0-24", "{}")
    cluster.ctl("h1", "put", mine, "{}")


def test_nobody_passes_for_a_member_or_gets_in_without_a_certificate(cluster: Cluster) -> None:
    member, other = cluster.members[0], cluster.lab.run.namespace("etcd2")
    client = f"{cluster.pki}/h1"
    curl = ["curl", "--silent", "--show-error", "--noproxy", "*", "--http1.1"]
    theirs = ["--cert", f"{client}/client.crt", "--key", f"{client}/client.key"]

    ours = ["--cert", f"{cluster.pki}/etcd2/peer.crt", "--key", f"{cluster.pki}/etcd2/peer.key"]
    members = [*curl, "--cacert", f"{cluster.pki}/peer-ca.crt", f"https://{member.address}:2380/members"]
    assert {known["name"] for known in json.loads(other.run([*members, *ours]).stdout)} == set(MEMBERS)
    for stranger in (theirs, []):
        assert other.run(members + stranger, check=False).returncode != 0

    version = [*curl, "--cacert", f"{client}/ca.crt", f"{member.endpoint}/version"]
    other.run([*version, *theirs])
    assert other.run(version, check=False).returncode != 0
