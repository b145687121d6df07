from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from flanneld_py.encap.backend import Underlay
from flanneld_py.encap.backends import Choice, make
from flanneld_py.registry.config import ConfigInvalid, parse_config
from tests.fake_kernel import FakeKernel

UNDERLAY = Underlay("eth0", 1500, IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"))


@pytest.mark.parametrize(
    ("config", "choice", "has_vxlan", "device", "why"),
    [
        ('"Backend": {"Type": "vxlan"}', "auto", True, "flannel.1", ""),
        ('"Backend": {"Type": "vxlan"}', "auto", False, "flannel.1", "the kernel has no VXLAN devices"),
        ('"Backend": {"Type": "vxlan"}', "kernel", False, "flannel.1", ""),
        ('"Backend": {"Type": "vxlan"}', "userspace", True, "flannel.1", "--datapath userspace"),
        ('"Backend": {"Type": "UDP"}', "auto", True, "flannel0", "the udp backend"),
        ('"Backend": {"Type": "udp"}', "userspace", True, "flannel0", "the udp backend"),
        ('"SubnetLen": 24', "auto", True, "flannel0", "the udp backend"),
    ],
)
async def test_the_config_names_the_backend(
    config: str, choice: Choice, has_vxlan: bool, device: str, why: str
) -> None:
    kernel = FakeKernel()
    kernel.has_vxlan = has_vxlan
    backend = await make(parse_config(b'{"Network": "10.5.0.0/16", %s}' % config.encode()), UNDERLAY, kernel, choice)
    assert backend.device == device
    assert why in backend.why_userspace
    assert bool(why) == bool(backend.why_userspace)


@pytest.mark.parametrize(
    ("config", "choice", "complaint"),
    [
        ('"Backend": {"Type": "wireguard"}', "auto", "'wireguard': supported are 'vxlan' and 'udp'"),
        ('"Backend": {"Type": "udp"}', "kernel", "--datapath is 'kernel': set --datapath to 'auto'"),
        ('"EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}', "auto", "IPv6"),
    ],
)
async def test_what_cannot_be_had_is_refused_with_a_way_out(config: str, choice: Choice, complaint: str) -> None:
    with pytest.raises(ConfigInvalid, match=complaint):
        await make(parse_config(b'{"Network": "10.5.0.0/16", %s}' % config.encode()), UNDERLAY, FakeKernel(), choice)
