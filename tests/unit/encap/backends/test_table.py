from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from flanneld_py.encap import family
from flanneld_py.encap.backends.base import Found, OnLink, Underlay
from flanneld_py.encap.backends.table import DatapathChoice, make, published
from flanneld_py.registry.config import ConfigInvalid, parse_config
from flanneld_py.registry.model import stand_in
from tests.fakes.kernel import FakeKernel

UNDERLAY = Underlay("eth0", 1500, IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"))
DUAL_UNDERLAY = Underlay(
    "eth0", 1500, UNDERLAY.address, UNDERLAY.public_ip, IPv6Address("2001:db8::1"), IPv6Address("2001:db8::1")
)
NOBODY: dict[family.Family, OnLink] = dict.fromkeys((family.IPV4, family.IPV6), lambda _: False)
IPV6 = '"EnableIPv6": true, "IPv6Network": "fc00::/48"'


@pytest.mark.parametrize(
    ("config", "choice", "has_vxlan", "device", "userspace", "why"),
    [
        ('"Backend": {"Type": "vxlan"}', "auto", True, "flannel.1", False, "--datapath auto"),
        ('"Backend": {"Type": "vxlan"}', "auto", False, "flannel.1", True, "the kernel has no VXLAN devices"),
        ('"Backend": {"Type": "vxlan"}', "kernel", False, "flannel.1", False, "--datapath kernel"),
        ('"Backend": {"Type": "vxlan"}', "userspace", True, "flannel.1", True, "--datapath userspace"),
        ('"Backend": {"Type": "UDP"}', "auto", True, "flannel0", True, "the udp backend"),
        ('"Backend": {"Type": "udp"}', "userspace", True, "flannel0", True, "the udp backend"),
        ('"Backend": {"Type": "host-gw"}', "userspace", False, None, False, "routes only"),
        ('"Backend": {"Type": "alloc"}', "auto", True, None, False, "to the operator"),
        ('"SubnetLen": 24', "auto", True, "flannel0", True, "the udp backend"),
    ],
)
async def test_the_config_names_the_backend(
    config: str, choice: DatapathChoice, has_vxlan: bool, device: str | None, userspace: bool, why: str
) -> None:
    kernel = FakeKernel()
    kernel.has_vxlan = has_vxlan
    (backend,) = await make(
        parse_config(b'{"Network": "10.5.0.0/16", %s}' % config.encode()), UNDERLAY, kernel, choice, NOBODY
    )
    assert backend.device == device
    assert backend.userspace is userspace
    assert why in backend.why


@pytest.mark.parametrize(
    ("config", "choice", "complaint"),
    [
        (
            '"Backend": {"Type": "wireguard"}',
            "auto",
            "'wireguard': supported are 'vxlan', 'host-gw', 'udp' and 'alloc'",
        ),
        ('"Backend": {"Type": "udp"}', "kernel", "--datapath is 'kernel': set --datapath to 'auto'"),
        (f'{IPV6}, "Backend": {{"Type": "udp"}}', "auto", "IPv6 was turned on after eth0 was chosen .* restart"),
        (f'{IPV6}, "Backend": {{"Type": "host-gw"}}', "auto", "IPv6 was turned on after eth0 was chosen .* restart"),
        (f'{IPV6}, "Backend": {{"Type": "vxlan"}}', "auto", "IPv6 was turned on after eth0 was chosen .* restart"),
    ],
)
async def test_what_cannot_be_had_is_refused_with_a_way_out(
    config: str, choice: DatapathChoice, complaint: str
) -> None:
    with pytest.raises(ConfigInvalid, match=complaint):
        await make(
            parse_config(b'{"Network": "10.5.0.0/16", %s}' % config.encode()),
            UNDERLAY,
            FakeKernel(),
            choice,
            NOBODY,
        )


@pytest.mark.parametrize(
    ("backend", "choice", "devices", "mtus"),
    [
        ("host-gw", "auto", [None, None], [1500, 1500]),
        ("alloc", "auto", [None, None], [1500, 1500]),
        ("vxlan", "userspace", ["flannel.1", "flannel-v6.1"], [1450, 1430]),
        ("udp", "auto", ["flannel0", "flannel0-v6"], [1472, 1452]),
    ],
)
async def test_every_backend_has_both_families(
    backend: str, choice: DatapathChoice, devices: list[str | None], mtus: list[int]
) -> None:
    config = f'{{"Network": "10.5.0.0/16", {IPV6}, "Backend": {{"Type": "{backend}"}}}}'
    made = await make(parse_config(config.encode()), DUAL_UNDERLAY, FakeKernel(), choice, NOBODY)
    assert [one.device for one in made] == devices
    assert [one.mtu for one in made] == mtus
    assert {one.userspace for one in made} == {devices[0] is not None}
    attrs = published([(one, Found("host-1")) for one in made])
    assert (attrs.public_ip, attrs.public_ip6) == (DUAL_UNDERLAY.public_ip, DUAL_UNDERLAY.public_ip6)


@pytest.mark.parametrize(("ipv4", "devices"), [("true", ["flannel.1", "flannel-v6.1"]), ("false", ["flannel-v6.1"])])
async def test_each_family_has_a_device_and_both_publish_in_one_lease(ipv4: str, devices: list[str]) -> None:
    config = f'{{"Network": "10.5.0.0/16", {IPV6}, "EnableIPv4": {ipv4}, "Backend": {{"Type": "vxlan"}}}}'
    made = await make(parse_config(config.encode()), DUAL_UNDERLAY, FakeKernel(), "auto", NOBODY)
    assert [backend.device for backend in made] == devices
    assert [backend.mtu for backend in made] == [1450, 1430][-len(devices) :]
    attrs = published([(backend, Found("host-1")) for backend in made])
    assert attrs.public_ip6 == DUAL_UNDERLAY.public_ip6
    assert attrs.public_ip == (DUAL_UNDERLAY.public_ip if ipv4 == "true" else stand_in(IPv6Address("2001:db8::1")))
    assert (attrs.backend_data is not None) == (ipv4 == "true")
    assert attrs.backend_v6_data is not None
    assert attrs.backend_v6_data != attrs.backend_data, "two devices, two MACs"
