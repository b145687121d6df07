"""How to get the device that is wanted from the one that is there, without losing what is on it. Pure."""

from __future__ import annotations

from enum import Enum

from flanneld_py.encap.kernel import KernelError
from flanneld_py.encap.state import ForeignLink, Link, OurLink, TunLink, VxlanLink


class LinkStep(Enum):
    """What brings an existing device, or none, to what is wanted."""

    NOTHING = "nothing"
    CREATE = "create"
    CHANGE = "change"
    RECREATE = "recreate"
    MAKE_ROOM = "make room"
    AWAIT = "await"

    @property
    def acts(self) -> bool:
        """Whether we do something to the device."""
        return self not in (LinkStep.NOTHING, LinkStep.AWAIT)


def link_step(have: Link | None, want: OurLink) -> LinkStep:
    """Decide how to get the wanted device without losing what is on it. Raises KernelError for a foreign device.

    The kernel fixes VNI, port, GBP and whether there is a parent at creation; all else is changed in place.
    """
    if isinstance(have, ForeignLink):
        kind, way_out = ("tun", "") if isinstance(want, TunLink) else ("vxlan", " or choose another Backend.VNI")
        raise KernelError(
            f"device {want.name} exists and is of kind {have.kind or 'unknown'!r}, not {kind}: "
            f"remove it (ip link del {want.name}){way_out}"
        )
    if isinstance(want, TunLink):
        return _tun_step(have, want)
    if have is None:
        return LinkStep.CREATE
    if isinstance(have, TunLink):
        return LinkStep.RECREATE
    fixed = [(link.vni, link.port, link.gbp, link.group, link.parent is None) for link in (have, want)]
    if fixed[0] != fixed[1]:
        return LinkStep.RECREATE
    return LinkStep.NOTHING if have == want else LinkStep.CHANGE


def _tun_step(have: OurLink | None, want: TunLink) -> LinkStep:
    """A TUN device is made by its process: a kernel device in its place makes room, and then it is waited for."""
    if have is None:
        return LinkStep.AWAIT
    if isinstance(have, VxlanLink):
        return LinkStep.MAKE_ROOM
    return LinkStep.NOTHING if have == want else LinkStep.CHANGE
