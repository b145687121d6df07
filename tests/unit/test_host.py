from __future__ import annotations

from ipaddress import ip_address

from flanneld_py.agent.host import broadcast_of, default_interface, default_interface6


def test_the_broadcast_address_of_a_link() -> None:
    assert broadcast_of(ip_address("192.0.2.9"), 29) == ip_address("192.0.2.15")
    assert broadcast_of(ip_address("192.0.2.9"), 31) is None
    assert broadcast_of(ip_address("192.0.2.9"), 32) is None
    assert broadcast_of(ip_address("2001:db8::9"), 64) is None


def test_the_default_route_in_the_kernels_table() -> None:
    table = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
*\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0
flannel.1\t0002050A\t0002050A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
"""
    assert default_interface(table) == "eth0"
    assert default_interface(table.splitlines()[0]) is None


def test_the_ipv6_default_route_in_the_kernels_table() -> None:
    def line(destination: str, length: str, metric: str, flags: str, name: str) -> str:
        zero = "0" * 32
        return f"{destination} {length} {zero} 00 {zero} {metric} 00000001 00000000 {flags} {name}\n"

    net = "20010db8" + "0" * 24
    table = (
        line(net, "40", "00000100", "00000001", "eth0")
        + line("0" * 32, "00", "00000400", "00000003", "eth1")
        + line("0" * 32, "00", "00000064", "00000003", "eth2")
        + line("0" * 32, "00", "ffffffff", "00200200", "lo")
    )
    assert default_interface6(table) == "eth2"
    assert default_interface6(line("0" * 32, "00", "ffffffff", "00200200", "lo")) is None
    assert default_interface6("") is None
