from __future__ import annotations

from dataclasses import replace

import pytest

from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.linkstep import LinkStep, link_step
from flanneld_py.encap.state import ForeignLink, Link, TunLink, VxlanLink

WANT = VxlanLink("flannel.1", 1, 8472, 1450, b"\2\0\0\0\0\xaa", "eth0", bytes([192, 0, 2, 1]))
TUN = TunLink("flannel.1", 1450)


@pytest.mark.parametrize(
    ("have", "step"),
    [
        (None, LinkStep.CREATE),
        (WANT, LinkStep.NOTHING),
        (replace(WANT, mtu=1400), LinkStep.CHANGE),
        (replace(WANT, mac=bytes(6)), LinkStep.CHANGE),
        (replace(WANT, up=False), LinkStep.CHANGE),
        (replace(WANT, learning=True), LinkStep.CHANGE),
        (replace(WANT, local=bytes([192, 0, 2, 77])), LinkStep.CHANGE),
        (replace(WANT, parent="eth7"), LinkStep.CHANGE),
        (replace(WANT, marked=False), LinkStep.CHANGE),
        (replace(WANT, parent=None), LinkStep.RECREATE),
        (replace(WANT, port=4789), LinkStep.RECREATE),
        (replace(WANT, vni=2), LinkStep.RECREATE),
        (replace(WANT, gbp=True), LinkStep.RECREATE),
        (replace(WANT, group=bytes([239, 1, 1, 1])), LinkStep.RECREATE),
    ],
)
def test_a_device_is_changed_in_place_wherever_the_kernel_can(have: Link | None, step: LinkStep) -> None:
    assert link_step(have, WANT) is step


def test_a_foreign_device_of_our_name_is_left_alone() -> None:
    with pytest.raises(KernelError, match="not vxlan"):
        link_step(ForeignLink("flannel.1", "bridge"), WANT)


@pytest.mark.parametrize(
    ("have", "step"),
    [
        (None, LinkStep.AWAIT),
        (TUN, LinkStep.NOTHING),
        (replace(TUN, mtu=1400), LinkStep.CHANGE),
        (replace(TUN, up=False), LinkStep.CHANGE),
        (WANT, LinkStep.MAKE_ROOM),
    ],
)
def test_a_tun_device_is_waited_for_where_there_is_none(have: Link | None, step: LinkStep) -> None:
    assert link_step(have, TUN) is step


def test_a_kernel_device_takes_the_place_of_a_tun_device() -> None:
    assert link_step(TUN, WANT) is LinkStep.RECREATE


def test_a_foreign_device_in_the_place_of_a_tun_device_is_left_alone() -> None:
    with pytest.raises(KernelError, match="not tun: remove it"):
        link_step(ForeignLink("flannel0", "bridge"), TunLink("flannel0", 1472))
