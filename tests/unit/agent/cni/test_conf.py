"""The delegate's configuration is what flannel's plugin makes of the same network and subnet file."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

from flanneld_py.agent.cni.conf import delegate_conf, netconf, outside, with_gateways
from flanneld_py.agent.subnetfile import SubnetFile

V4 = (IPv4Network("10.42.0.0/16"), IPv4Network("10.42.5.0/24"))
V6 = (IPv6Network("fd00:42::/48"), IPv6Network("fd00:42:0:5::/64"))
SUBNETS = SubnetFile((V4,), 1450, ipmasq=False)
PLAIN: dict[str, object] = {"cniVersion": "0.3.1", "name": "cbr0", "type": "flannel-py"}


def test_a_bridge_by_default() -> None:
    assert delegate_conf(netconf(PLAIN), SUBNETS) == {
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "bridge",
        "ipMasq": True,
        "isGateway": True,
        "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.42.5.0/24"}]],
            "routes": [{"dst": "10.42.0.0/16"}],
        },
    }


def test_both_families_have_a_range_and_a_route_each() -> None:
    ipam = delegate_conf(netconf(PLAIN), replace(SUBNETS, families=(V4, V6)))["ipam"]
    assert ipam == {
        "type": "host-local",
        "ranges": [[{"subnet": "10.42.5.0/24"}], [{"subnet": "fd00:42:0:5::/64"}]],
        "routes": [{"dst": "10.42.0.0/16"}, {"dst": "fd00:42::/48"}],
    }


def test_one_of_the_two_masquerades() -> None:
    assert delegate_conf(netconf(PLAIN), replace(SUBNETS, ipmasq=True))["ipMasq"] is False


def test_what_the_operator_delegates_wins() -> None:
    delegate = {"mtu": 1400, "ipMasq": False, "isGateway": False, "hairpinMode": True, "isDefaultGateway": True}
    made = delegate_conf(netconf({**PLAIN, "delegate": delegate}), SUBNETS)
    assert {key: made[key] for key in delegate} == delegate


def test_another_delegate_is_no_gateway() -> None:
    made = delegate_conf(netconf({**PLAIN, "delegate": {"type": "macvlan", "master": "eth0"}}), SUBNETS)
    assert (made["type"], made["master"], "isGateway" in made) == ("macvlan", "eth0", False)


def test_ipams_own_keys_and_routes_stay_in_front() -> None:
    ipam = {"dataDir": "/run/x", "routes": [{"dst": "0.0.0.0/0", "gw": "10.42.5.9"}], "ranges": [["ignored"]]}
    assert delegate_conf(netconf({**PLAIN, "ipam": ipam}), SUBNETS)["ipam"] == {
        "type": "host-local",
        "dataDir": "/run/x",
        "ranges": [[{"subnet": "10.42.5.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.42.5.9"}, {"dst": "10.42.0.0/16"}],
    }


def test_the_runtimes_configuration_is_handed_on() -> None:
    runtime = {"portMappings": [{"hostPort": 80, "containerPort": 80}]}
    made = delegate_conf(netconf({**PLAIN, "runtimeConfig": runtime}), SUBNETS)
    assert made["runtimeConfig"] == runtime


def test_the_paths_are_flannels_unless_given() -> None:
    conf = netconf(PLAIN)
    assert (conf.subnet_file, conf.data_dir) == ("/run/flannel/subnet.env", "/var/lib/cni/flannel")
    conf = netconf({**PLAIN, "subnetFile": "/a", "dataDir": "/b"})
    assert (conf.subnet_file, conf.data_dir) == ("/a", "/b")


def test_addresses_outside_the_subnets_are_found() -> None:
    both = replace(SUBNETS, families=(V4, V6))
    result: dict[str, object] = {"ips": [{"address": "10.42.5.2/24"}, {"address": "fd00:42:0:5::2/64"}]}
    assert outside(result, both) == []
    assert outside(result, SUBNETS) == ["fd00:42:0:5::2/64"]
    assert outside({"ips": [{"address": "x"}]}, both) == ["x"]
    nothing: list[dict[str, object]] = [{}, {"ips": None}, {"ips": {}}, {"ips": ["x"]}]
    assert [outside(result, both) for result in nothing] == [[]] * 4


def test_a_route_without_a_gateway_gets_that_of_its_familys_address() -> None:
    ips = [{"address": "10.42.5.2/24", "gateway": "10.42.5.1"}, {"address": "fd00:42:0:5::2/64"}]
    routes = [{"dst": "10.42.0.0/16"}, {"dst": "10.9.0.0/16", "gw": "10.42.5.9"}, {"dst": "fd00:42::/48"}]
    mended = with_gateways({"ips": ips, "routes": routes})["routes"]
    assert mended == [{"dst": "10.42.0.0/16", "gw": "10.42.5.1"}, routes[1], routes[2]]
    for odd in ({"ips": ips}, {"ips": ips, "routes": "x"}, {"ips": [1], "routes": [2]}):
        assert with_gateways(dict(odd)) == odd
