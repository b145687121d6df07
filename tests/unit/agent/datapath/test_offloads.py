from __future__ import annotations

from dataclasses import replace

import pytest

from flanneld_py.agent.datapath.offloads import MEANINGS, Offloads, in_use, lacking
from flanneld_py.encap.datapath.control.messages import Status
from flanneld_py.encap.datapath.tun import LADDER

ALL = Status(1, True, 0, "flannel.1", LADDER[0][1], segmentation=True, coalescing=True, accelerated=True)


def test_every_offload_of_the_device_has_a_meaning() -> None:
    assert in_use(ALL) == tuple(MEANINGS)
    assert lacking(ALL) == ()
    assert lacking(Status(1, True, 0)) == tuple(MEANINGS)


def test_what_is_used_and_what_is_lacking_is_logged_when_it_changes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    offloads = Offloads()

    def lines(status: Status) -> list[tuple[str, dict[str, str]]]:
        caplog.clear()
        offloads.note(status)
        return [(record.levelname, record.__dict__["facts"]) for record in caplog.records]

    assert lines(Status(1, False, 0)) == []
    assert lines(ALL) == [("INFO", {"device": "flannel.1", "offloads": ",".join(MEANINGS)})]
    assert lines(replace(ALL, peers=3)) == []
    info, warning = lines(replace(ALL, segmentation=False))
    assert info[0] == "INFO"
    facts = {"device": "flannel.1", "lacking": "udp-segment", "means": MEANINGS["udp-segment"]}
    assert warning == ("WARNING", facts)
    assert lines(replace(ALL, segmentation=False)) == []
