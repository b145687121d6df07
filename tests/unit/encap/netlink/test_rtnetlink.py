"""The rtnetlink codec against pyroute2's: what we write it reads, what it writes we read. And against noise."""

from __future__ import annotations

from contextlib import suppress
from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from flanneld_py.encap.netlink import request
from flanneld_py.encap.netlink import rtnetlink as rt
from flanneld_py.encap.state import Address, FdbEntry, Neighbour, text

ifindexes = st.integers(1, 2**31 - 1)
seqs = st.integers(1, 2**32 - 1)
packed = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
macs = st.binary(min_size=6, max_size=6).map(lambda mac: bytes([mac[0] & 0xFE | 2, *mac[1:]]))
names = st.text("abcxyz0189.-", min_size=1, max_size=15)


def decoded(kind: Any, message: bytes) -> Any:
    found = kind(message)
    found.decode()
    assert found["header"]["length"] == len(message)
    return found


def encoded(kind: Any, number: int, fields: dict[str, Any], attributes: list[tuple[str, Any]]) -> bytes:
    message = kind()
    message["header"]["type"] = number
    message["header"]["sequence_number"] = 7
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)


def only(buffer: bytes) -> rt.Message:
    (message,) = rt.messages(buffer)
    return message


def family(address: bytes) -> int:
    return rt.AF_INET if len(address) == 4 else rt.AF_INET6


def attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


# What we write, pyroute2 reads


@given(seqs, ifindexes, packed, macs)
def test_neighbour_requests(seq: int, ifindex: int, address: bytes, mac: bytes) -> None:
    for number in (rt.RTM_NEWNEIGH, rt.RTM_DELNEIGH):
        found = decoded(ndmsg, request.neighbour(seq, number, rt.NLM_F_CREATE, ifindex, address, mac))
        assert (found["header"]["type"], found["header"]["sequence_number"]) == (number, seq)
        assert found["header"]["flags"] == rt.NLM_F_CREATE | rt.NLM_F_REQUEST
        assert (found["family"], found["ifindex"], found["state"]) == (family(address), ifindex, rt.NUD_PERMANENT)
        assert (found.get("dst"), found.get("lladdr")) == (text(address), text(mac))


@given(seqs, ifindexes, packed, macs)
def test_fdb_requests(seq: int, ifindex: int, destination: bytes, mac: bytes) -> None:
    found = decoded(ndmsg, request.fdb(seq, rt.NLM_F_CREATE, ifindex, mac, destination))
    assert (found["family"], found["ifindex"], found["flags"]) == (rt.AF_BRIDGE, ifindex, rt.NTF_SELF)
    assert found["state"] == rt.NUD_PERMANENT | rt.NUD_NOARP
    assert found.get("lladdr") == text(mac)
    message = only(request.fdb(seq, 0, ifindex, mac, destination))
    raw = rt.attributes(request.fdb(seq, 0, ifindex, mac, destination), message.at + rt.NEIGHBOUR.size, message.end)
    assert raw[rt.NDA_DST] == destination
    found = decoded(ndmsg, request.fdb_delete(seq, ifindex, mac))
    assert (found["header"]["type"], found.get("lladdr"), found.get("dst")) == (rt.RTM_DELNEIGH, text(mac), None)


@given(seqs, ifindexes, packed, st.integers(0, 128))
def test_address_requests(seq: int, ifindex: int, address: bytes, length: int) -> None:
    found = decoded(ifaddrmsg, request.address(seq, rt.RTM_NEWADDR, 0, ifindex, address, length))
    assert (found["family"], found["prefixlen"], found["index"]) == (family(address), length, ifindex)
    assert found.get("local") == found.get("address") == text(address)


@given(seqs, ifindexes, st.sampled_from([4, 16]).flatmap(lambda n: st.tuples(*[st.binary(min_size=n, max_size=n)] * 2)))
def test_route_requests(seq: int, ifindex: int, pair: tuple[bytes, bytes]) -> None:
    subnet, gateway = pair
    found = decoded(rtmsg, request.route(seq, rt.NLM_F_EXCL, ifindex, subnet, 20, gateway))
    assert (found["family"], found["dst_len"], found["table"]) == (family(subnet), 20, rt.RT_TABLE_MAIN)
    assert (found["proto"], found["type"], found["scope"], found["flags"]) == (76, rt.RTN_UNICAST, 0, 4)
    assert (found.get("dst"), found.get("gateway"), found.get("oif")) == (text(subnet), text(gateway), ifindex)
    found = decoded(rtmsg, request.route(seq, 0, ifindex, subnet, 20, None))
    assert (found.get("gateway"), found["flags"]) == (None, 0)
    found = decoded(rtmsg, request.route_delete(seq, ifindex, subnet, 20, gateway))
    assert found.get("gateway") == text(gateway)
    found = decoded(rtmsg, request.route_delete(seq, ifindex, subnet, 20, None))
    assert found.get("gateway") is None
    assert (found["header"]["type"], found["proto"], found.get("oif")) == (rt.RTM_DELROUTE, 0, ifindex)
    found = decoded(rtmsg, request.route_by_id(seq, rt.RTM_NEWROUTE, 0, subnet, 20, 4711))
    assert (found.get("dst"), found.get("oif"), found.get("gateway")) == (text(subnet), None, None)


@given(names, ifindexes)
def test_link_requests(name: str, ifindex: int) -> None:
    assert decoded(ifinfmsg, request.get_link(1, name)).get("ifname") == name
    assert decoded(ifinfmsg, request.get_link(1, ifindex))["index"] == ifindex


# What we write or pyroute2 writes, we read


@given(ifindexes, packed, macs, st.integers(0, 0xFF))
def test_a_neighbour_is_read(ifindex: int, address: bytes, mac: bytes, state: int) -> None:
    attributes = [("NDA_DST", text(address)), ("NDA_PROBES", 3), ("NDA_LLADDR", text(mac))]
    fields = {"family": family(address), "ifindex": ifindex, "state": state}
    buffer = encoded(ndmsg, rt.RTM_NEWNEIGH, fields, attributes)
    message = only(buffer)
    expected = Neighbour("dev", address, mac) if state & rt.NUD_PERMANENT else ("neighbour", "dev", address, 0)
    assert rt.read_neighbour(buffer, message.at, message.end, {ifindex: "dev"}) == expected
    assert rt.read_neighbour(buffer, message.at, message.end, {}) is None


@given(ifindexes, packed, macs)
def test_a_forwarding_entry_is_read(ifindex: int, destination: bytes, mac: bytes) -> None:
    def read(mac: bytes) -> FdbEntry | Any:
        attributes = [("NDA_LLADDR", text(mac)), ("NDA_DST", text(destination))]
        fields = {"family": rt.AF_BRIDGE, "ifindex": ifindex, "state": 0xC0, "flags": rt.NTF_SELF}
        buffer = encoded(ndmsg, rt.RTM_NEWNEIGH, {**fields, "ndm_type": rt.RTN_UNICAST}, attributes)
        message = only(buffer)
        return rt.read_neighbour(buffer, message.at, message.end, {ifindex: "dev"})

    assert read(mac) == (None if mac == bytes(6) else FdbEntry("dev", mac, destination))
    multicast = bytes([mac[0] | 1]) + mac[1:]
    for other in (multicast, bytes(6)):
        assert read(other) is None


@pytest.mark.parametrize("kind", [rt.RTM_NEWNEIGH, rt.RTM_DELNEIGH])
def test_what_a_kernel_tells_of_a_forwarding_entry_a_second_time_is_nothing(kind: int) -> None:
    """As 5.10, 6.1 and 6.12 send it after VXLAN's own message; from 6.13 on there is none."""
    buffer = bytes.fromhex(
        f"28000000 {kind:02x}00 0000 00000000 00000000"  # 40 bytes, no flags, sequence number or port id
        "07000000 03000000 c000 02 00"  # AF_BRIDGE, index 3, permanent and noarp, NTF_SELF, type 0
        "0a000200 020000000001 0000"  # NDA_LLADDR
    )
    message = only(buffer)
    assert rt.read_neighbour(buffer, message.at, message.end, {3: "flannel.1"}) is None


@given(ifindexes, packed, st.integers(0, 32))
def test_an_address_is_read(ifindex: int, address: bytes, length: int) -> None:
    attributes = [("IFA_LOCAL", text(address)), ("IFA_ADDRESS", text(address))]
    fields = {"family": family(address), "prefixlen": length, "index": ifindex}
    buffer = encoded(ifaddrmsg, rt.RTM_NEWADDR, fields, attributes)
    message = only(buffer)
    link_local = len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80
    expected = None if link_local else Address("dev", address, length)
    assert rt.read_address(buffer, message.at, message.end, {ifindex: "dev"}) == expected


@pytest.mark.parametrize(("v6", "metric"), [(False, 0), (True, 1024)])
def test_a_route_is_read(v6: bool, metric: int) -> None:
    subnet, gateway = ("fd05:1::", "fd05:1::1") if v6 else ("10.5.1.0", "10.5.1.1")
    fields: dict[str, Any] = {"family": rt.AF_INET6 if v6 else rt.AF_INET, "dst_len": 24, "table": 254, "proto": 3}
    fields["type"] = 1
    attributes = [("RTA_TABLE", 254), ("RTA_DST", subnet), ("RTA_PRIORITY", metric), ("RTA_GATEWAY", gateway)]
    attributes.append(("RTA_OIF", 9))

    def read(fields: dict[str, Any], attributes: list[tuple[str, Any]]) -> rt.RouteMessage | None:
        buffer = encoded(rtmsg, rt.RTM_NEWROUTE, fields, attributes)
        message = only(buffer)
        return rt.read_route(buffer, message.at, message.end)

    found = read(fields, attributes)
    assert found is not None
    assert (found.ifindex, text(found.subnet), found.prefix_length, found.protocol) == (9, subnet, 24, 3)
    assert found.gateway is not None
    assert text(found.gateway) == gateway
    for change in ({"proto": rt.RTPROT_KERNEL}, {"tos": 4}, {"src_len": 64}, {"flags": rt.RTM_F_CLONED}):
        assert read(fields | change, attributes) is None
    assert read(fields, [("RTA_TABLE", 100), *attributes[1:]]) is None
    assert read(fields, [*attributes[:2], ("RTA_PRIORITY", 50), *attributes[3:]]) is None
    blackhole = read(fields | {"type": 6}, attributes)
    assert blackhole is not None
    assert blackhole.ifindex == 0


@pytest.mark.parametrize("v6", [False, True])
def test_nexthops_and_routes_through_them_are_read(v6: bool) -> None:
    gateway = bytes(range(16)) if v6 else bytes(range(4))
    buffer = request.nexthop(1, 0, 77, 5, gateway)
    message = only(buffer)
    assert rt.read_nexthop(buffer, message.at, message.end) == rt.NexthopMessage(77, 5, gateway, 76)
    metric = attribute(rt.RTA_PRIORITY, pack("=I", 1024)) if v6 else b""
    buffer = request.route_by_id(1, rt.RTM_NEWROUTE, 0, gateway, 24, 77) + metric
    found = rt.read_route(buffer, 16, len(buffer))
    assert found == rt.RouteMessage(0, gateway, 24, None, 76, 77)


@pytest.mark.parametrize("v6", [False, True])
def test_a_vxlan_device_is_read(v6: bool) -> None:
    local, group = ("fd00::1", "ff02::7") if v6 else ("10.0.0.1", "239.0.0.7")
    six = "6" if v6 else ""
    data = [
        ("IFLA_VXLAN_ID", 7),
        (f"IFLA_VXLAN_GROUP{six}", group),
        ("IFLA_VXLAN_LINK", 3),
        (f"IFLA_VXLAN_LOCAL{six}", local),
        ("IFLA_VXLAN_LEARNING", 1),
        ("IFLA_VXLAN_PORT", 8472),
        ("IFLA_VXLAN_GBP", True),
    ]
    info = {"attrs": [("IFLA_INFO_KIND", "vxlan"), ("IFLA_INFO_DATA", {"attrs": data})]}
    attributes = [("IFLA_IFNAME", "flannel.7"), ("IFLA_ADDRESS", "02:00:00:00:00:09"), ("IFLA_MTU", 1450)]
    buffer = encoded(ifinfmsg, rt.RTM_NEWLINK, {"index": 4, "flags": 0x41}, [*attributes, ("IFLA_LINKINFO", info)])
    message = only(buffer)
    found = rt.read_link(buffer, message.at, message.end)
    assert (found.ifindex, found.name, found.up, found.running, found.mtu) == (4, "flannel.7", True, True, 1450)
    assert (found.kind, found.vni, found.port, found.parent) == ("vxlan", 7, 8472, 3)
    assert (text(found.mac), found.learning, found.gbp) == ("02:00:00:00:00:09", True, True)
    assert found.local is not None
    assert found.group is not None
    assert (text(found.local), text(found.group)) == (local, group)


def test_a_device_without_kind_is_read() -> None:
    buffer = encoded(ifinfmsg, rt.RTM_NEWLINK, {"index": 1, "flags": 0}, [("IFLA_IFNAME", "eth0"), ("IFLA_MTU", 1500)])
    message = only(buffer)
    assert rt.read_link(buffer, message.at, message.end) == rt.LinkMessage(1, "eth0", False, False, 1500, b"", "")


@pytest.mark.parametrize("capped", [False, True])
def test_an_error_and_the_kernels_words_are_read(capped: bool) -> None:
    request_body = b"" if capped else bytes(12)
    cause = pack("=IHHII", 16 + 12, 24, 5, 99, 0) + request_body
    flags = rt.NLM_F_ACK_TLVS | (rt.NLM_F_CAPPED if capped else 0)
    body = pack("=i", -17) + cause + attribute(rt.NLMSGERR_ATTR_MSG, b"Already there.\0")
    buffer = pack("=IHHII", 16 + len(body), rt.NLMSG_ERROR, flags, 99, 1234) + body
    assert rt.read_error(buffer, only(buffer)) == (17, "Already there.")


def test_an_acknowledgement_is_no_error() -> None:
    body = pack("=i", 0) + bytes(16)
    buffer = pack("=IHHII", 16 + len(body), rt.NLMSG_ERROR, rt.NLM_F_CAPPED, 99, 1234) + body
    assert rt.read_error(buffer, only(buffer)) == (0, "")


# Noise


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_messages_are_split_where_they_were_joined(bodies: list[bytes]) -> None:
    buffer = b""
    for number, body in enumerate(bodies):
        buffer += bytes(-len(buffer) % 4) + pack("=IHHII", 16 + len(body), number, 0, number, 0) + body
    assert [buffer[message.at : message.end] for message in rt.messages(buffer)] == bodies


@given(st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40), max_size=8))
def test_attributes_are_split_where_they_were_joined(wanted: dict[int, bytes]) -> None:
    buffer = b"".join(attribute(kind, value) for kind, value in wanted.items())
    assert rt.attributes(buffer, 0, len(buffer)) == wanted
    nested = b"".join(attribute(kind | 0x8000, value) for kind, value in wanted.items())
    assert rt.attributes(nested, 0, len(nested)) == wanted


@given(st.binary(max_size=120))
def test_noise_is_malformed_or_nothing_else(noise: bytes) -> None:
    buffer = pack("=IHHII", 16 + len(noise), rt.NLMSG_ERROR, rt.NLM_F_ACK_TLVS, 1, 1) + noise
    message, names = only(buffer), dict.fromkeys(range(256), "dev")
    for read in (
        lambda: list(rt.messages(noise)),
        lambda: rt.read_error(buffer, message),
        lambda: rt.read_link(buffer, message.at, message.end),
        lambda: rt.read_address(buffer, message.at, message.end, names),
        lambda: rt.read_neighbour(buffer, message.at, message.end, names),
        lambda: rt.read_nexthop(buffer, message.at, message.end),
        lambda: rt.read_route(buffer, message.at, message.end),
    ):
        with suppress(rt.Malformed):
            read()


@given(st.binary(min_size=1, max_size=80), st.integers(0, 200))
def test_a_cut_message_is_never_read_beyond_its_end(body: bytes, cut: int) -> None:
    whole = pack("=IHHII", 16 + len(body), 24, 0, 1, 1) + body
    part = whole[: min(cut, len(whole) - 1)]
    if part:
        with pytest.raises(rt.Malformed):
            list(rt.messages(part))
