"""Agents on real hosts with a real etcd: they make an overlay, survive, repair, and touch nothing foreign.

h1c1 ── h1 ──┐
h2c1 ── h2 ──┼── core: etcd      (the picture: tests/lab/__init__.py)
h3c1 ── h3 ──┘

The tests named after a fault of flannel's (A to E of its watches, the device that came back without peers) fail on its
behaviour.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

import pytest

from tests.lab.agent import HEALTH_PORT
from tests.lab.etcd import EtcdServer
from tests.lab.host import Host
from tests.lab.lab import DEFAULT_FLANNELD, Lab
from tests.lab.manual import Vtep, program
from tests.lab.measure import PingStream, ping, ping_through
from tests.lab.topology import mac
from tests.netns.conftest import MakeLab
from tests.patience import patient, within

pytestmark = pytest.mark.root

DEVICE = "flannel.1"
PREFIX = "/coreos.com/network"
VXLAN = {"VNI": 1, "VtepMAC": "02:99:00:00:00:09"}


def until(condition: Callable[[], object], what: str, timeout: float = 10) -> None:
    """Wait for a condition on a deadline."""
    deadline = within(timeout)
    while not condition():
        assert time.monotonic() < deadline, f"not within {patient(timeout):g} s: {what}"
        time.sleep(0.01)


def etcd(lab: Lab) -> EtcdServer:
    assert lab.etcd is not None
    return lab.etcd


def show(host: Host, *command: str) -> Any:
    """Ask `ip -j` or `bridge -j` about a host."""
    tool, *rest = command
    return json.loads(host.namespace.run([tool, "-d", "-j", *rest]).stdout or "[]")


def device(host: Host) -> dict[str, Any]:
    found = [link for link in show(host, "ip", "link", "show") if link["ifname"] == DEVICE]
    return found[0] if found else {}


def routes(host: Host) -> set[str]:
    """The subnets that go over the overlay device."""
    return {route["dst"] for route in show(host, "ip", "route", "show", "dev", DEVICE)} if device(host) else set()


def neighbours(host: Host) -> dict[str, str]:
    found = show(host, "ip", "neigh", "show", "dev", DEVICE, "nud", "permanent") if device(host) else []
    return {entry["dst"]: entry["lladdr"] for entry in found}


def fdb(host: Host) -> dict[str, str]:
    found = show(host, "bridge", "fdb", "show", "dev", DEVICE) if device(host) else []
    return {entry["mac"]: entry["dst"] for entry in found if "dst" in entry}


def subnet(host: Host) -> str:
    return str(IPv4Interface(host.agent.subnet_env()["FLANNEL_SUBNET"]).network)


def lease_key(net: str) -> str:
    return f"{PREFIX}/subnets/{net.replace('/', '-')}"


def put_lease(lab: Lab, net: str, public_ip: str, **data: object) -> None:
    value = {"PublicIP": public_ip, "PublicIPv6": None, "BackendType": "vxlan", "BackendData": {**VXLAN, **data}}
    etcd(lab).ctl("put", lease_key(net), stdin=json.dumps(value).encode())


def complete(host: Host, peers: int) -> bool:
    """Whether the host has all three entries of so many peers."""
    return len(routes(host)) == len(neighbours(host)) == len(fdb(host)) == peers


def nothing_lost(stream: PingStream) -> None:
    """Stop a ping and check that every packet came back."""
    stream.wait_replies(5)
    passage = stream.stop()
    assert passage.received == passage.sent, f"{passage.sent - passage.received} of {passage.sent} packets lost"


@pytest.fixture
def three(make_lab: MakeLab) -> Lab:
    lab = make_lab(hosts=3)
    assert lab.wait_connected() == []
    return lab


@pytest.fixture
def two(make_lab: MakeLab) -> Lab:
    lab = make_lab(hosts=2)
    assert lab.wait_connected() == []
    return lab


# The main job


def test_every_container_reaches_every_other(three: Lab) -> None:
    assert [ping(*pair, payload=1450 - 28).loss for pair in three.pairs()] == [0.0] * 6
    for host in three.hosts:
        others = {subnet(other) for other in three.hosts} - {subnet(host)}
        assert routes(host) == others
        assert set(fdb(host).values()) == {str(other.address) for other in three.hosts} - {str(host.address)}


def test_with_the_etcd3_package_as_the_client(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=2, agent_args=("--etcd-client", "etcd3"))
    assert lab.wait_connected() == []
    put_lease(lab, "10.42.240.0/24", "172.30.0.99")
    until(lambda: complete(lab.hosts[0], 2), "a peer that joined later")
    assert lab.hosts[0].agent.terminate() == 0


def test_what_others_see_is_flannels(two: Lab) -> None:
    host = two.hosts[0]
    env = host.agent.subnet_env()
    assert list(env) == ["FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"]
    assert (env["FLANNEL_NETWORK"], env["FLANNEL_MTU"]) == ("10.42.0.0/16", "1450")
    link = device(host)
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], data["local"], data["link"]) == (1, 8472, str(host.address), "eth0")
    assert not data["learning"]
    address = show(host, "ip", "-4", "addr", "show", "dev", DEVICE)[0]["addr_info"][0]
    assert (address["local"], address["prefixlen"]) == (subnet(host).removesuffix("/24"), 32)
    value = etcd(two).ctl("get", "--print-value-only", lease_key(subnet(host))).strip()
    assert value == (
        f'{{"PublicIP":"{host.address}","PublicIPv6":null,"BackendType":"vxlan",'
        f'"BackendData":{{"VNI":1,"VtepMAC":"{link["address"]}"}}}}'
    )
    keys = etcd(two).ctl("get", "--prefix", "--keys-only", f"{PREFIX}/subnets").split()
    assert sorted(keys) == sorted(lease_key(subnet(other)) for other in two.hosts), "leases and nothing else"


def test_health(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=1, overlay="none")
    host = lab.hosts[0]
    etcd(lab).ctl("del", f"{PREFIX}/config")
    host.agent.start()

    def answer(path: str) -> str:
        ask = ["curl", "-s", "-w", " %{http_code}", f"http://127.0.0.1:8081/{path}"]
        return host.namespace.run(ask, check=False).stdout

    until(lambda: answer("healthz") == "flanneld is running 200", "healthz before there is a config")
    assert answer("readyz") == "flanneld is not ready yet 503"
    etcd(lab).ctl("put", f"{PREFIX}/config", lab.plan.network_config())
    host.agent.wait_ready()
    assert answer("readyz") == "flanneld is ready 200"


def test_options_of_the_backend(make_lab: MakeLab) -> None:
    options = {"VNI": 77, "port": 4789, "MTU": 1400, "GBP": True, "Learning": True}
    lab = make_lab(hosts=2, backend_options=options)
    assert lab.wait_connected() == []
    link = show(lab.hosts[0], "ip", "link", "show", "dev", "flannel.77")[0]
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["port"], link["mtu"], data["learning"], "gbp" in data) == (77, 4789, 1350, True, True)
    assert lab.hosts[0].agent.subnet_env()["FLANNEL_MTU"] == "1350"


# Restarts


def test_no_packet_is_lost_while_every_agent_is_killed_and_restarted(three: Lab) -> None:
    with ExitStack() as running:
        streams = [running.enter_context(ping_through(*pair)) for pair in three.pairs()]
        for stream in streams:
            stream.wait_replies(5)
        before = {host.name: (subnet(host), device(host)["address"]) for host in three.hosts}
        for host in three.hosts:
            host.agent.kill()
            streams[0].wait_replies(10)
            host.agent.start()
            host.agent.wait_ready()
        for stream in streams:
            nothing_lost(stream)
    assert {host.name: (subnet(host), device(host)["address"]) for host in three.hosts} == before


def test_sigterm_ends_with_code_0_and_traffic_flows_on(two: Lab) -> None:
    with ping_through(*two.pairs()[0]) as stream:
        stream.wait_replies(5)
        assert [host.agent.terminate() for host in two.hosts] == [0, 0]
        stream.wait_replies(20)
        nothing_lost(stream)
    assert etcd(two).ctl("get", lease_key(subnet(two.hosts[0])))


def test_subnet_and_mac_survive_a_reboot(two: Lab) -> None:
    host = two.hosts[0]
    before = subnet(host), device(host)["address"]
    host.agent.kill()
    host.namespace.ip(f"link del {DEVICE}")
    host.agent.subnet_file.unlink()
    host.agent.start()
    host.agent.wait_ready()
    assert (subnet(host), device(host)["address"]) == before
    assert two.wait_connected() == []


def test_the_mac_is_the_hosts_own_also_without_device_and_lease(two: Lab) -> None:
    """Clones share the machine id, as the lab's hosts do: their MACs differ all the same, and stay."""
    host = two.hosts[0]
    before = device(host)["address"]
    assert before != device(two.hosts[1])["address"]
    host.agent.kill()
    host.namespace.ip(f"link del {DEVICE}")
    etcd(two).ctl("del", lease_key(subnet(host)))
    host.agent.start()
    host.agent.wait_ready()
    assert device(host)["address"] == before


def test_what_flannels_daemon_left_is_adopted_without_losing_a_packet(make_lab: MakeLab) -> None:
    """Device, MAC, subnet and entries of another daemon are taken over host by host, under a running ping."""
    lab = make_lab(hosts=2, overlay="none")
    networks = [IPv4Network("10.42.121.0/24"), IPv4Network("10.42.122.0/24")]
    vteps = [Vtep(h.address, mac(h.address, first=0x06), n) for h, n in zip(lab.hosts, networks, strict=True)]
    for host, own in zip(lab.hosts, vteps, strict=True):
        program(host.namespace, own, [peer for peer in vteps if peer is not own], 1500)
        put_lease(lab, str(own.subnet), str(host.address), VtepMAC=own.mac)
        host.attach(lab.run, 1, IPv4Interface((own.subnet[1], 24)), 1450)
    assert lab.wait_connected() == []
    indexes = [device(host)["ifindex"] for host in lab.hosts]
    with ping_through(*lab.pairs()[0]) as stream:
        stream.wait_replies(5)
        for host in lab.hosts:
            host.agent.start()
            host.agent.wait_ready()
        nothing_lost(stream)
    assert [device(host)["ifindex"] for host in lab.hosts] == indexes, "the device is the same one"
    assert [device(host)["address"] for host in lab.hosts] == [vtep.mac for vtep in vteps]
    assert [subnet(host) for host in lab.hosts] == [str(net) for net in networks]


def test_stale_entries_go_once_the_registry_is_in_sync_and_not_before(two: Lab) -> None:
    host = two.hosts[0]
    put_lease(two, "10.42.250.0/24", "172.30.0.250")
    until(lambda: complete(host, 2), "the third peer")
    host.agent.kill()
    etcd(two).ctl("del", lease_key("10.42.250.0/24"))
    etcd(two).stop()
    host.agent.start()
    time.sleep(1)  # Nothing may happen: there is no condition to wait for.
    assert complete(host, 2)
    etcd(two).start()
    host.agent.wait_ready()
    until(lambda: complete(host, 1), "the entries of the peer that left are gone")
    assert two.wait_connected() == []


# Repair


@pytest.mark.parametrize(
    "damage",
    [
        "ip route del {net}",
        "ip route replace {net} dev flannel.1",
        "ip neigh flush dev flannel.1 nud permanent",
        "ip neigh replace {base} lladdr 02:00:00:00:00:01 nud reachable dev flannel.1",
        "ip neigh replace {base} lladdr 02:00:00:00:00:01 nud permanent dev flannel.1",
        "bridge fdb del {mac} dev flannel.1 dst {ip}",
        "bridge fdb replace {mac} dev flannel.1 dst 172.30.0.99 self permanent",
        "ip nexthop flush",
        "ip addr flush dev flannel.1",
        "ip link set flannel.1 down",
        "ip link set flannel.1 down; ip link set flannel.1 up",
        "ip link set flannel.1 mtu 1280",
        "ip link set flannel.1 address 02:00:00:00:00:99",
        "ip link set eth0 down; ip link set eth0 up; ip route add default via 172.30.0.1",
    ],
)
def test_what_others_damage_is_repaired(two: Lab, damage: str) -> None:
    host, peer = two.hosts
    before = device(host), routes(host), neighbours(host), fdb(host)
    net = subnet(peer)
    words = {"net": net, "base": net.removesuffix("/24"), "mac": device(peer)["address"], "ip": str(peer.address)}
    host.namespace.run(["sh", "-ec", damage.format(**words)])

    def repaired() -> bool:
        now = device(host), routes(host), neighbours(host), fdb(host)
        same_device = all(now[0].get(what) == before[0][what] for what in ("ifindex", "address", "mtu", "flags"))
        return same_device and now[1:] == before[1:]

    until(repaired, "everything as before")
    assert two.wait_connected() == []


def test_a_deleted_device_comes_back_with_its_peers_and_its_mac(three: Lab) -> None:
    """Flannel's fault: a new device with a MAC that nobody knows, and without any peer."""
    host = three.hosts[0]
    before = device(host)["address"], routes(host), neighbours(host), fdb(host)
    host.namespace.ip(f"link del {DEVICE}")
    until(lambda: complete(host, 2), "the device with both peers")
    assert (device(host)["address"], routes(host), neighbours(host), fdb(host)) == before
    assert three.wait_connected() == []


def test_foreign_state_is_left_alone(two: Lab) -> None:
    host = two.hosts[0]
    host.namespace.ip(
        "route add 192.168.77.0/24 dev flannel.1",
        "addr add 192.168.78.1/24 dev flannel.1",
        "neigh add 192.168.77.5 lladdr 02:00:00:00:00:77 nud permanent dev flannel.1",
        "route add 10.42.200.0/24 via 172.30.0.1 dev eth0 proto static",
    )
    put_lease(two, "10.42.200.0/24", "172.30.0.200")
    until(lambda: len(fdb(host)) == 2, "the new peer, as far as it can be made")
    host.agent.kill()
    host.agent.start()
    host.agent.wait_ready()
    assert routes(host) == {subnet(two.hosts[1]), "192.168.77.0/24", "192.168.78.0/24"}
    assert neighbours(host)["192.168.77.5"] == "02:00:00:00:00:77"
    way = show(host, "ip", "route", "show", "10.42.200.0/24")
    assert [(route["dev"], route["protocol"]) for route in way] == [("eth0", "static")]
    assert "10.42.200.0" in host.agent.log_tail()
    assert two.wait_connected() == []
    host.namespace.ip("route del 10.42.200.0/24")
    until(lambda: "10.42.200.0/24" in routes(host), "our route once the way is free", 40)


# A registry with faults


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("foo", "bar"),
        ("10.42.240.0-24", "not json"),
        ("10.42.240.0-24", "[1]"),
        ("10.42.240.0-24", '{"PublicIP":"nonsense","BackendType":"vxlan"}'),
        ("10.42.240.300-24", '{"PublicIP":"172.30.0.99"}'),
        ("10.42.240.0-24", '{"PublicIP":"172.30.0.99","BackendType":"vxlan","BackendData":{"VtepMAC":"x"}}'),
        ("10.42.240.0-24", '{"PublicIP":"239.1.1.1","BackendType":"vxlan","BackendData":GOOD}'),
        ("10.42.240.0-24", '{"PublicIP":"172.30.0.11","BackendType":"vxlan","BackendData":GOOD}'),
        ("10.42.240.0-24", '{"PublicIP":"172.30.0.99","BackendType":"host-gw"}'),
        ("10.99.0.0-24", '{"PublicIP":"172.30.0.99","BackendType":"vxlan","BackendData":GOOD}'),
        ("128.0.0.0-1", '{"PublicIP":"172.30.0.99","BackendType":"vxlan","BackendData":GOOD}'),
        ("10.42.0.0-16", '{"PublicIP":"172.30.0.99","BackendType":"vxlan","BackendData":GOOD}'),
    ],
)
def test_fault_a_a_bad_record_removes_nobody(two: Lab, key: str, value: str) -> None:
    host = two.hosts[0]
    before = routes(host), neighbours(host), fdb(host)
    with ping_through(*two.pairs()[0]) as stream:
        stream.wait_replies(3)
        value = value.replace("GOOD", json.dumps(VXLAN))
        etcd(two).ctl("put", f"{PREFIX}/subnets/{key}", stdin=value.encode())
        until(lambda: f"{PREFIX}/subnets/{key}" in host.agent.log_tail(), "the record is logged")
        host.agent.kill()  # And also if it is found in the listing.
        host.agent.start()
        host.agent.wait_ready()
        nothing_lost(stream)
    assert (routes(host), neighbours(host), fdb(host)) == before
    assert host.agent.log_tail().count(f"{PREFIX}/subnets/{key}") == 2, "once in each run"


def test_odd_but_readable_records_are_used_as_flannel_does(two: Lab) -> None:
    value = '{"publicip":"172.30.0.99","BACKENDTYPE":"vxlan","backendData":{"vni":1,"vtepmac":"%s","x":1},"new":[]}'
    etcd(two).ctl("put", lease_key("10.42.240.0/24"), stdin=(value % VXLAN["VtepMAC"]).encode())
    until(lambda: complete(two.hosts[0], 2), "the peer")


def miss_events(lab: Lab, host: Host, meanwhile: Callable[[], None]) -> None:
    """Let an agent's watch break, let things happen and be compacted, and let the agent see again."""
    host.namespace.run(["kill", "-STOP", str(host.agent.pid)])
    etcd(lab).stop()
    etcd(lab).start()
    meanwhile()
    status = json.loads(etcd(lab).ctl("endpoint", "status", "-w", "json"))
    etcd(lab).ctl("compact", str(status[0]["Status"]["header"]["revision"]))
    host.namespace.run(["kill", "-CONT", str(host.agent.pid)])


def test_faults_b_and_c_after_compaction_our_own_is_kept_and_changes_are_seen(three: Lab) -> None:
    """B: the second listing reports our own lease as removed. C: a changed MAC or address goes unnoticed."""
    host = three.hosts[0]
    gone = three.hosts[2]
    put_lease(three, "10.42.240.0/24", "172.30.0.98")
    until(lambda: complete(host, 3), "the peer to be changed")

    def meanwhile() -> None:
        gone.agent.kill()
        etcd(three).ctl("del", lease_key(subnet(gone)))
        put_lease(three, "10.42.240.0/24", "172.30.0.99", VtepMAC="02:99:00:00:00:0a")
        put_lease(three, "10.42.241.0/24", "172.30.0.97", VtepMAC="02:99:00:00:00:0b")

    before = subnet(host)
    miss_events(three, host, meanwhile)
    wanted = {subnet(three.hosts[1]), "10.42.240.0/24", "10.42.241.0/24"}
    until(lambda: routes(host) == wanted and len(fdb(host)) == 3, "what happened meanwhile", 30)
    assert fdb(host)["02:99:00:00:00:0a"] == "172.30.0.99"
    assert "history is lost" in host.agent.log_tail()
    assert host.agent.alive
    assert subnet(host) == before
    assert etcd(three).ctl("get", lease_key(before))


def test_fault_d_a_lease_without_ttl_is_a_peer_like_any_other(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=1, overlay="none")
    put_lease(lab, "10.42.240.0/24", "172.30.0.99")
    lab.hosts[0].agent.start()
    lab.hosts[0].agent.wait_ready()
    assert complete(lab.hosts[0], 1)


def test_fault_e_an_etcd_that_comes_late_or_goes_early_is_followed_all_the_same(make_lab: MakeLab) -> None:
    """E: where the first listing or watch fails, peers are never learnt and the lease is never renewed."""
    lab = make_lab(hosts=2, overlay="none")
    etcd(lab).stop()
    for host in lab.hosts:
        host.agent.start()
    time.sleep(0.5)
    etcd(lab).start()
    for host in lab.hosts:
        host.agent.wait_ready(30)
        lab.attach(host)
    etcd(lab).kill()
    etcd(lab).start()
    put_lease(lab, "10.42.240.0/24", "172.30.0.99")
    until(lambda: complete(lab.hosts[0], 2), "a peer that joined after etcd came back", 30)
    assert lab.wait_connected() == []


def test_an_etcd_that_is_gone_or_empty_removes_no_peer(three: Lab) -> None:
    with ping_through(*three.pairs()[0]) as stream:
        stream.wait_replies(3)
        etcd(three).kill()
        etcd(three).wipe()
        stream.wait_replies(50)
        etcd(three).start()
        key = lease_key(subnet(three.hosts[0]))
        until(lambda: key in etcd(three).ctl("get", "--prefix", "--keys-only", PREFIX), "our lease is back", 60)
        stream.wait_replies(50)
        nothing_lost(stream)
    for host in three.hosts:
        until(lambda host=host: complete(host, 2), "every peer")  # type: ignore[misc]


def test_a_deleted_lease_comes_back_with_the_same_subnet(two: Lab) -> None:
    host, peer = two.hosts
    key = lease_key(subnet(host))
    etcd(two).ctl("del", key)
    until(lambda: key in etcd(two).ctl("get", key), "the lease")
    until(lambda: complete(peer, 1), "the peer has us again")
    assert host.agent.alive
    assert two.wait_connected() == []


def test_a_config_that_is_missing_or_wrong_is_waited_for(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=1, overlay="none")
    host = lab.hosts[0]
    etcd(lab).ctl("del", f"{PREFIX}/config")
    host.agent.start()
    until(lambda: f"no network config at key {PREFIX}/config" in host.agent.log_tail(), "it says what is missing")
    status = json.loads(host.namespace.run(["curl", "-s", f"http://127.0.0.1:{HEALTH_PORT}/status"]).stdout)
    assert status["state"].startswith("waiting for a network config: no network config at key")
    etcd(lab).ctl("put", f"{PREFIX}/config", stdin=b'{"Network": "10.42.0.0/33"}')
    until(lambda: "10.42.0.0/33" in host.agent.log_tail(), "it says what is wrong")
    time.sleep(2)  # Long enough for a busy loop to show.
    ticks = host.namespace.run(["sh", "-c", f"cut -d' ' -f14,15 /proc/{host.agent.pid}/stat"]).stdout.split()
    assert sum(map(int, ticks)) < 150, "CPU time in 10 ms, of which the start is most"
    assert host.agent.log_tail().count("WARNING") <= 3
    assert host.agent.terminate() == 0, "also while it waits"
    host.agent.start()
    etcd(lab).ctl("put", f"{PREFIX}/config", lab.plan.network_config())
    host.agent.wait_ready()


def test_two_agents_with_one_device_do_not_fight(two: Lab) -> None:
    """Two networks on one host with the default VNI: flannel's users forget that one."""
    host = two.hosts[0]
    etcd(two).ctl("put", "/other/config", '{"Network": "10.77.0.0/16", "Backend": {"Type": "vxlan"}}')
    command = [str(DEFAULT_FLANNELD), "--etcd", etcd(two).endpoint, "--etcd-prefix", "/other", "--iface", "eth0"]
    second = [*command, "--subnet-file", str(host.agent.subnet_file.with_name("other.env"))]
    done = host.namespace.run(second, check=False, timeout=20)
    assert done.returncode == 1
    assert "another flanneld-py on this host has device flannel.1" in done.stderr
    assert two.wait_connected() == []


# The command line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--nonsense"], 2, "no flag --nonsense"),
        (["--subnet-file", "/proc/nowhere/subnet.env"], 1, "--subnet-file"),
        (["--etcd-cafile", "/nonexistent"], 2, "--etcd-cafile"),
        (["--kube-subnet-mgr"], 2, "not supported"),
        (["--version"], 0, "flanneld-py"),
    ],
)
def test_exit_codes(make_lab: MakeLab, arguments: list[str], code: int, words: str) -> None:
    lab = make_lab(hosts=1, overlay="none")
    flanneld = str(DEFAULT_FLANNELD)
    command = [flanneld, "--etcd-endpoints", etcd(lab).endpoint, *arguments]
    done = lab.hosts[0].namespace.run(command, check=False, timeout=20)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
