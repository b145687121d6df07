from __future__ import annotations

from ipaddress import ip_address

from flanneld_py.agent.underlay.host import base_of, broadcast_of, default_interfaces, default_interfaces6, lasting


def test_the_broadcast_address_of_a_link() -> None:
    assert broadcast_of(ip_address("192.0.2.9"), 29) == ip_address("192.0.2.15")
    assert broadcast_of(ip_address("192.0.2.9"), 31) is None
    assert broadcast_of(ip_address("192.0.2.9"), 32) is None
    assert broadcast_of(ip_address("2001:db8::9"), 64) is None


def test_the_address_that_names_a_link() -> None:
    assert base_of(ip_address("192.0.2.9"), 29) == ip_address("192.0.2.8")
    assert base_of(ip_address("192.0.2.9"), 31) is base_of(ip_address("2001:db8::9"), 64) is None


def test_of_an_infiniband_address_what_outlives_a_boot_counts() -> None:
    """Four bytes of flags and queue pair number, eight of the subnet's prefix, eight of the port (RFC 4391)."""
    port = bytes(range(8))
    assert lasting(b"\x80\x00\x12\x34" + b"\xfe\x80" + bytes(6) + port) == port
    assert lasting(bytes(6)) == bytes(6)


def test_the_default_route_in_the_kernels_table() -> None:
    table = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
*\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0
flannel.1\t0002050A\t0002050A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
"""
    assert default_interfaces(table) == ("eth0", "eth1")
    assert default_interfaces(table.splitlines()[0]) == ()


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
    assert default_interfaces6(table) == ("eth2", "eth1")
    assert default_interfaces6(line("0" * 32, "00", "ffffffff", "00200200", "lo")) == ()
    assert default_interfaces6("") == ()
