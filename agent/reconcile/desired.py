"""What the registry and the configuration say about this host: what the Reconciler and the Supervisor bring about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flanneld_py.encap.backends.base import Backend
from flanneld_py.encap.peers import Own
from flanneld_py.encap.state import OurLink
from flanneld_py.registry.config import NetworkConfig

if TYPE_CHECKING:
    from flanneld_py.encap.datapath.control import messages


@dataclass(frozen=True, slots=True)
class Desired:
    """This host as it should be. `link` is None if there is no device of ours; `datapath` if there is no process."""

    config: NetworkConfig
    backend: Backend
    own: Own
    link: OurLink | None
    datapath: messages.Configure | None
