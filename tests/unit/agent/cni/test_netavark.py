"""The netavark plugin as netavark sees it: answers, errors, and what is left, with delegates that are scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flanneld_py.agent.cni.netavark_spec import container_call, created, status
from flanneld_py.agent.cni.spec import CniError
from tests.cni_call import PLUGIN, Answer, FakeDelegate
from tests.patience import patient

SUBNET_ENV = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.5.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "02:00:00:00:00:01"},
        {"name": "veth1", "mac": "02:00:00:00:00:02"},
        {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/c"},
    ],
    "ips": [{"address": "10.42.5.2/24", "gateway": "10.42.5.1", "interface": 2}],
}
NETWORK: dict[str, Any] = {
    "name": "overlay",
    "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
    "driver": "flannel-py",
    "internal": False,
    "ipv6_enabled": False,
    "dns_enabled": True,
    "options": None,
    "ipam_options": {},
    "subnets": None,
}
PORT = {"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1}
MAPPED = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}


def asked(ports: object = None, options: dict[str, object] | None = None, **more: object) -> dict[str, Any]:
    """Setup's input."""
    return {
        "container_id": "c1",
        "container_name": "web",
        "port_mappings": ports,
        "network": {**NETWORK, "options": {}},
        "network_options": {"interface_name": "eth0", "aliases": ["c1"], **(options or {})},
        **more,
    }


@dataclass(frozen=True, slots=True)
class Site:
    """A host with a subnet file, and delegates that are scripts; `namespace` is a container's."""

    directory: Path
    bridge: FakeDelegate
    portmap: FakeDelegate
    namespace: str

    @property
    def subnet_file(self) -> Path:
        return self.directory / "subnet.env"

    def call(self, *arguments: str, said: object, **environment: str) -> Answer:
        stdin = said if isinstance(said, str) else json.dumps(said)
        done = subprocess.run(
            [PLUGIN, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env={"PATH": str(self.directory / "bin"), **environment},
            timeout=patient(60),
            check=False,
        )
        return Answer(done.returncode, json.loads(done.stdout or "{}"), done.stderr)

    def here(self, **more: object) -> dict[str, Any]:
        """Setup's input with this host's paths."""
        ask = asked(**more)  # type: ignore[arg-type]
        paths = {"subnet_file": str(self.subnet_file), "data_dir": str(self.directory / "state")}
        ask["network"]["options"] = {**paths, "cni_path": str(self.directory / "bin"), **ask["network"]["options"]}
        return ask

    def setup(self, namespace: str = "", environment: dict[str, str] | None = None, **more: object) -> Answer:
        return self.call("setup", namespace or self.namespace, said=self.here(**more), **(environment or {}))

    def teardown(self, namespace: str = "", **more: object) -> Answer:
        return self.call("teardown", namespace or self.namespace, said=self.here(**more))

    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "state").glob("attachments/*"))

    def called(self) -> list[str]:
        """What was asked of the delegates, in no order between them."""
        pairs = (("bridge", self.bridge), ("portmap", self.portmap))
        return [f"{name} {command}" for name, each in pairs for command, _, _ in each.asked()]


@pytest.fixture(scope="module")
def namespaces() -> Iterator[list[str]]:
    """Two network namespaces that are not the host's, by paths that anybody may look at."""
    with subprocess.Popen(["sleep", "600"]) as other:
        # Another kind of namespace of the same file system stands for a container's: making one needs root.
        yield [f"/proc/{other.pid}/ns/uts", f"/proc/{other.pid}/ns/ipc"]
        other.kill()


@pytest.fixture
def site(tmp_path: Path, namespaces: list[str]) -> Site:
    plugins = tmp_path / "bin"
    plugins.mkdir()
    bridge, portmap = FakeDelegate(plugins, "bridge"), FakeDelegate(plugins, "portmap")
    bridge.says("ADD", RESULT)
    portmap.says("ADD", RESULT)
    FakeDelegate(plugins, "host-local")
    (plugins / "iptables").write_text("")
    (plugins / "iptables").chmod(0o755)
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)
    return Site(tmp_path, bridge, portmap, namespaces[0])


def test_info_says_which_protocol() -> None:
    done = subprocess.run([PLUGIN, "info"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert (said["api_version"], said["version"][0].isdigit()) == ("1.0.0", True)


def test_a_network_is_kept_without_a_subnet() -> None:
    labelled = {**NETWORK, "labels": {"a": "b"}, "options": {"subnet_file": "/x", "no_default_route": "1"}}
    assert created(labelled) == {
        **labelled,
        "network_interface": "cni0",
        "subnets": [],
        "dns_enabled": False,
        "ipam_options": {"driver": "none"},
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"subnets": [{"subnet": "10.9.0.0/24"}]}, "the subnet is this host's lease: leave out --subnet"),
        ({"routes": [{"destination": "10.9.0.0/24"}]}, "its routes are the overlay and the default route: leave out"),
        ({"network_dns_servers": ["10.9.0.1"]}, "it resolves no names; podman run --dns gives a container a server"),
        ({"network_interface": "br7"}, "the bridge of all networks of this driver is cni0: leave out --interface-name"),
        ({"ipam_options": {"driver": "dhcp"}}, "addresses are of this host's lease: leave out --ipam-driver dhcp"),
        ({"options": {"mtu": "1400"}}, "network overlay has an option mtu: expected one of subnet_file, data_dir, cni"),
        ({"options": {"no_default_route": "maybe"}}, "\"options.no_default_route\" is 'maybe': expected true or false"),
        ({"options": {"data_dir": "state"}}, "\"options.data_dir\" is 'state': expected a path from /"),
        ({"options": ["x"]}, "\"network.options\" is ['x']: expected an object"),
        ({"name": "../x"}, "\"network.name\" is '../x': expected a network's name"),
    ],
)
def test_a_network_that_cannot_be_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(CniError) as refused:
        created({**NETWORK, **given})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": None}, '"network" and "network_options" are needed'),
        ({"container_id": "../x"}, "\"container_id\" is '../x': expected what matches"),
        ({"options": {"interface_name": "a/b"}}, "\"interface_name\" is 'a/b': expected what matches"),
        ({"options": {"static_ips": ["ten"]}}, "\"network_options.static_ips\" is ['ten']: expected addresses"),
        ({"options": {"static_mac": "02:00"}}, "\"network_options.static_mac\" is '02:00': expected an Ethernet"),
        ({"options": {"options": {"mtu": "9"}}}, "network overlay has no options for a container"),
        ({"ports": {}}, '"port_mappings" is {}: expected a list'),
        ({"ports": [7]}, '"port_mappings" is 7: expected objects'),
        ({"ports": [{**PORT, "host_port": 0}]}, "expected ports of 1 to 65535, of tcp, udp or sctp"),
        ({"ports": [{**PORT, "host_port": 65535, "range": 2}]}, "expected ports of 1 to 65535"),
        ({"ports": [{**PORT, "range": "x", "container_port": "x"}]}, "expected ports of 1 to 65535"),
        ({"ports": [{**PORT, "protocol": "icmp"}]}, "expected ports of 1 to 65535, of tcp, udp or sctp"),
        ({"ports": [{**PORT, "host_ip": "here"}]}, "\"port_mappings.host_ip\" is 'here': expected an address"),
    ],
)
def test_what_netavark_would_never_ask_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CniError) as refused:
        container_call("ADD", asked(**given), "/run/netns/c")
    assert message in str(refused.value)


def test_ports_are_mapped_one_by_one() -> None:
    ports = [{**PORT, "range": 2, "protocol": "tcp,udp"}, {**PORT, "protocol": "", "host_ip": "::1", "range": 0}]
    conf = container_call("ADD", asked(ports), "/run/netns/c").request.conf
    delegate = conf["delegate"]
    assert isinstance(delegate, dict)
    [portmap] = delegate["flannel-py/chain"]
    mapped = [
        (p["hostPort"], p["containerPort"], p["protocol"], p["hostIP"])
        for p in portmap["runtimeConfig"]["portMappings"]
    ]
    pairs = [(8080 + i, 80 + i, protocol, "") for i in (0, 1) for protocol in ("tcp", "udp")]
    assert mapped == [*pairs, (8080, 80, "tcp", "::1")]
    assert (portmap["type"], portmap["name"]) == ("portmap", "overlay")


@pytest.mark.parametrize(("given", "default"), [({}, True), ({"internal": True}, False)])
def test_an_internal_network_has_neither_a_default_route_nor_ports(given: dict[str, object], default: bool) -> None:
    ask = asked([PORT])
    ask["network"] |= given
    delegate = container_call("ADD", ask, "/run/netns/c").request.conf["delegate"]
    assert isinstance(delegate, dict)
    assert delegate["isDefaultGateway"] is default
    assert bool(delegate["flannel-py/chain"]) is default, "its ports are of another network"


def test_both_families_are_in_the_status() -> None:
    ips = [*RESULT["ips"], {"address": "fd00:42:0:5::2/64"}]
    assert status("eth0", {**RESULT, "ips": ips}) == {
        "interfaces": {
            "eth0": {
                "mac_address": "02:00:00:00:00:03",
                "subnets": [{"ipnet": "10.42.5.2/24", "gateway": "10.42.5.1"}, {"ipnet": "fd00:42:0:5::2/64"}],
            }
        }
    }
    with pytest.raises(CniError, match="no interface with an address"):
        status("eth0", {})


def test_setup_has_the_bridge_and_then_portmap_do_it(site: Site) -> None:
    answer = site.setup(ports=[PORT], options={"static_ips": ["10.42.5.9"], "static_mac": "02:00:00:00:00:09"})
    subnets = [{"ipnet": "10.42.5.2/24", "gateway": "10.42.5.1"}]
    said = {"interfaces": {"eth0": {"mac_address": "02:00:00:00:00:03", "subnets": subnets}}}
    assert answer == Answer(0, said, "")
    [(command, variables, conf)] = site.bridge.asked()
    assert command == "ADD"
    assert (variables["CNI_CONTAINERID"], variables["CNI_IFNAME"]) == ("c1", "eth0")
    assert variables["CNI_NETNS"] == site.namespace
    assert conf["runtimeConfig"] == {"ips": ["10.42.5.9"], "mac": "02:00:00:00:00:09"}
    assert (conf["bridge"], conf["mtu"], conf["ipMasq"]) == ("cni0", 1450, False)
    assert (conf["isDefaultGateway"], conf["hairpinMode"]) == (True, True)
    assert conf["ipam"]["ranges"] == [[{"subnet": "10.42.5.0/24"}]]
    [(command, _, conf)] = site.portmap.asked()
    assert (command, conf["prevResult"], conf["runtimeConfig"]) == ("ADD", RESULT, {"portMappings": [MAPPED]})
    assert site.kept() == ["c1:eth0"]


def test_networks_of_this_driver_share_their_addresses(site: Site) -> None:
    for name in ("overlay", "other"):
        assert site.setup(container_id=name, network={**NETWORK, "name": name, "options": {}}).code == 0
    assert {conf["name"] for _, _, conf in site.bridge.asked()} == {"flannel-py"}


def test_another_cni_calls_variables_are_not_handed_on(site: Site) -> None:
    environment = {"CNI_COMMAND": "DEL", "CNI_ARGS": "IP=10.9.9.9", "CNI_CONTAINERID": "other"}
    assert site.setup(environment=environment).code == 0
    [(command, variables, _)] = site.bridge.asked()
    assert (command, variables["CNI_CONTAINERID"], "CNI_ARGS" in variables) == ("ADD", "c1", False)


def test_teardown_undoes_what_was_set_up_whatever_it_is_asked(site: Site) -> None:
    site.setup(ports=[PORT])
    site.subnet_file.unlink()
    assert site.teardown() == Answer(0, {}, "")
    assert site.called() == ["bridge ADD", "bridge DEL", "portmap ADD", "portmap DEL"]
    assert site.kept() == []
    assert site.teardown(ports=[PORT]) == Answer(0, {}, "")
    assert len(site.called()) == 4


def test_teardown_of_what_was_never_set_up_succeeds_and_makes_nothing(site: Site) -> None:
    assert site.teardown(ports=[PORT]) == Answer(0, {}, "")
    assert (site.called(), (site.directory / "state").exists()) == ([], False)


def test_teardown_of_a_namespace_that_is_gone_succeeds(site: Site) -> None:
    site.setup()
    assert site.teardown("/run/netns/gone").code == 0
    assert [variables["CNI_NETNS"] for _, variables, _ in site.bridge.asked()] == [site.namespace, ""]
    assert site.kept() == []


def test_a_failure_of_portmap_undoes_the_bridge(site: Site) -> None:
    site.portmap.says("ADD", {"code": 100, "msg": "cannot open iptables"}, code=1)
    assert site.setup(ports=[PORT]) == Answer(1, {"error": "portmap: cannot open iptables"}, "")
    assert site.called() == ["bridge ADD", "bridge DEL", "portmap ADD", "portmap DEL"]
    assert site.kept() == []


def test_the_bridge_is_undone_also_if_portmap_cannot_be(site: Site) -> None:
    site.setup(ports=[PORT])
    site.portmap.says("DEL", {"code": 100, "msg": "busy"}, code=1)
    assert site.teardown() == Answer(1, {"error": "portmap: busy"}, "")
    assert site.called() == ["bridge ADD", "bridge DEL", "portmap ADD", "portmap DEL"]
    assert site.kept() == ["c1:eth0"]
    site.portmap.says("DEL", None)
    assert site.teardown().code == 0
    assert site.kept() == []


def test_a_second_setup_is_refused_and_costs_the_first_nothing(site: Site) -> None:
    site.setup()
    answer = site.setup()
    assert answer.code == 1
    assert answer.said["error"].startswith("eth0 of container c1 is set up already; if a call was broken off")
    assert (site.called(), site.kept()) == (["bridge ADD"], ["c1:eth0"])


def test_what_is_left_of_the_containers_former_start_is_removed_first(site: Site, namespaces: list[str]) -> None:
    site.setup(namespaces[1], ports=[PORT])
    assert site.setup().code == 0
    assert [command for command, _, _ in site.bridge.asked()] == ["ADD", "DEL", "ADD"]
    assert [command for command, _, _ in site.portmap.asked()] == ["ADD", "DEL"]
    assert site.kept() == ["c1:eth0"]


def test_a_full_pool_is_looked_through_for_containers_that_are_gone(site: Site, tmp_path: Path) -> None:
    gone = tmp_path / "netns"
    for container in ("stays", "goes"):
        site.setup(container_id=container)
    record = tmp_path / "state/attachments/goes:eth0"
    record.write_text(record.read_text().replace(site.namespace, str(gone)))
    site.bridge.says("ADD", {"code": 11, "msg": "no IP addresses available"}, code=1)
    assert site.setup(container_id="late") == Answer(1, {"error": "bridge: no IP addresses available"}, "")
    deleted = [v["CNI_CONTAINERID"] for command, v, _ in site.bridge.asked() if command == "DEL"]
    assert (deleted.count("goes"), deleted.count("stays")) == (1, 0)
    assert site.kept() == ["stays:eth0"]
    adds = [v["CNI_CONTAINERID"] for command, v, _ in site.bridge.asked() if command == "ADD"]
    assert adds.count("late") == 2, "once more, after there was something to remove"
    site.setup(container_id="late")
    adds = [v["CNI_CONTAINERID"] for command, v, _ in site.bridge.asked() if command == "ADD"]
    assert adds.count("late") == 3, "not again"


@pytest.mark.parametrize("said", ["", "{", "[]", "\x00", "7"])
@pytest.mark.parametrize("command", ["create", "setup", "teardown"])
def test_garbage_is_answered_in_netavarks_form(site: Site, command: str, said: str) -> None:
    arguments = [command] if command == "create" else [command, site.namespace]
    answer = site.call(*arguments, said=said)
    assert (answer.code, list(answer.said), answer.stderr) == (1, ["error"], "")
    assert (site.called(), site.kept()) == ([], [])


@pytest.mark.parametrize("arguments", [["setup"], ["teardown"], ["create", "x"], ["setup", "a", "b"]])
def test_wrong_arguments_are_answered_in_netavarks_form(site: Site, arguments: list[str]) -> None:
    answer = site.call(*arguments, said={}, CNI_COMMAND="ADD")
    assert answer == Answer(1, {"error": "expected create, setup NETNS, teardown NETNS or info"}, "")


@pytest.mark.parametrize(
    ("namespace", "message"),
    [
        ("/nowhere", "/nowhere is no network namespace: the container has ended, or never started"),
        ("/etc", "/etc is no network namespace"),
        ("/proc/self/ns/net", "/proc/self/ns/net is the host's own network namespace: expected a container's"),
    ],
)
def test_a_namespace_that_is_no_containers_is_refused(site: Site, namespace: str, message: str) -> None:
    answer = site.setup(namespace)
    assert answer.said["error"].startswith(message)
    assert (site.called(), site.kept()) == ([], [])


def test_what_is_missing_is_named_before_anything_is_made(site: Site) -> None:
    no_ipv6 = site.setup(network={**NETWORK, "ipv6_enabled": True, "options": {}})
    assert "the network is --ipv6, but this host's lease has no IPv6" in no_ipv6.said["error"]
    stranger = site.setup(options={"static_ips": ["10.9.9.9"]})
    assert stranger.said["error"].startswith("10.9.9.9 is not in this host's subnet 10.42.5.0/24")
    (site.directory / "bin/iptables").unlink()
    assert site.setup(ports=[PORT]).said["error"].startswith("a published port needs iptables")
    (site.directory / "bin/portmap").unlink()
    (site.directory / "bin/iptables").write_text("")
    (site.directory / "bin/iptables").chmod(0o755)
    assert site.setup(ports=[PORT]).said["error"].startswith("there is no plugin portmap in CNI_PATH=")
    site.subnet_file.unlink()
    assert "this host has no subnet yet" in site.setup().said["error"]
    assert (site.called(), site.kept()) == ([], [])


def test_it_imports_nothing_that_is_slow_to_import() -> None:
    program = "import sys, flanneld_py.agent.cni.netavark; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    slow = {"asyncio", "socket", "ssl", "logging", "grpc", "google", "pyroute2", "typing_extensions"}
    assert not loaded & (slow | {"importlib.metadata"})
    ours = {name for name in loaded if name.startswith(("flanneld_py.registry", "flanneld_py.encap"))}
    assert ours == set()


def test_cni_does_not_import_what_netavark_needs() -> None:
    environment = {**os.environ, "CNI_COMMAND": "VERSION"}
    program = "import sys; from flanneld_py.agent.cni.command import main; main(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "flanneld_py.agent.cni.netavark" not in done.stdout.split()
