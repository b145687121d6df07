"""The agent's state as one JSON document, for `GET /status`: what its fields are called, and nothing else.

The names and their units are documented in docs/operate.md. What is not known yet is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flanneld_py.agent.reconcile.postponed import SHOWN
from flanneld_py.encap.family import IPV4, IPV6

if TYPE_CHECKING:
    from flanneld_py.agent.datapath.supervise import Report, Supervisor
    from flanneld_py.agent.firewall.reconciler import FirewallReconciler
    from flanneld_py.agent.reconcile.desired import Desired
    from flanneld_py.agent.reconcile.reconciler import Reconciler
    from flanneld_py.encap.datapath.control.messages import PeerTraffic, Status

Document = dict[str, object]

TOTALS = {
    "sent": "sent_packets",
    "sent-bytes": "sent_bytes",
    "received": "received_packets",
    "received-bytes": "received_bytes",
}
"""The data plane's counters that count no drops."""

USERSPACE = {IPV4: "userspace", IPV6: "userspace_ipv6"}
"""The field of each family's data-plane process."""


def starting(state: str) -> Document:
    """Return what there is to say before there is a lease; `state` is a sentence."""
    return {
        "state": state,
        "ready": False,
        "registry_connected": False,
        "subnet": None,
        "device": None,
        "backend": None,
        "datapath": None,
        "peers": 0,
        "rejected_leases": [],
        "failing_entries": [],
        "contested_entries": {"count": 0, "entries": []},
        "firewall": None,
        **dict.fromkeys(USERSPACE.values()),
    }


def waiting(reconcilers: Sequence[Reconciler], supervisors: Iterable[Supervisor]) -> str:
    """Return the sentence for a host that has its lease and is not ready, with what is in the way."""
    reasons = [each.link_failure for each in reconcilers] + [each.trouble for each in supervisors]
    return ": ".join(
        filter(None, ["waiting for the device, its entries and the packet filter", "; ".join(filter(None, reasons))])
    )


def serving(reconcilers: Sequence[Reconciler], *, connected: bool, overdue: bool) -> str:
    """Return the sentence for a host that is ready."""
    state = "registry connected" if connected else "registry away, traffic goes on"
    rejected = max(len(reconciler.rejected) for reconciler in reconcilers)
    peers = max(reconciler.peers for reconciler in reconcilers)
    return f"{peers} peers, {rejected} leases not used, {state}" + (", OUR LEASE ENDS SOON" if overdue else "")


def network(wanted: Sequence[Desired]) -> Document:
    """Return what this host is, given each family; nothing before there is one."""
    if not wanted:
        return {}
    first = wanted[0]
    return {
        "subnet": ", ".join(map(str, first.own.subnets.families)),
        "device": ", ".join(each.backend.device for each in wanted if each.backend.device) or None,
        "backend": first.config.backend_type,
        "datapath": {"kind": "userspace" if first.backend.userspace else "kernel", "reason": first.backend.why},
    }


def peers(reconcilers: Sequence[Reconciler]) -> Document:
    """Return what has become of the others' leases, in any family; nothing before there is one."""
    if not reconcilers:
        return {}
    rejected = {item for reconciler in reconcilers for item in reconciler.rejected.items()}
    failing = [item for each in reconcilers for item in (*each.postponed.refused, *each.beside.found)]
    contested = [entry for reconciler in reconcilers for entry in reconciler.postponed.contested]
    return {
        "peers": max(reconciler.peers for reconciler in reconcilers),
        "rejected_leases": [{"key": key, "reason": reason} for key, reason in sorted(rejected)],
        "failing_entries": [{"entry": entry, "reason": reason} for entry, reason in failing],
        "contested_entries": {"count": len(contested), "entries": contested[:SHOWN]},
    }


def firewall(guard: FirewallReconciler | None) -> Document:
    """Return how the firewall rules are; nothing if we look after none."""
    if guard is None:
        return {}
    report = guard.report()
    return {
        "firewall": {
            "kind": report.choice.kind if report.choice is not None else None,
            "reason": report.choice.why if report.choice is not None else None,
            "in_force": report.in_force,
            "repairs": report.repairs,
            "last_repair_seconds_ago": report.repaired_ago,
            "last_error": report.error,
            "last_error_seconds_ago": report.failed_ago,
            "dropped_by_others": [{"by": each.by, "do": each.do} for each in report.obstacles],
            "raw_table": list(report.lacking),
        }
    }


def userspace(report: Report | None, trouble: str) -> Document:
    """Return what the data-plane process says of itself; only `trouble` if it is not served."""
    if report is None:
        return {"served": False, "trouble": trouble}
    from flanneld_py.agent.datapath.offloads import in_use, lacking

    status = report.status
    return {
        "served": True,
        "trouble": trouble,
        "pid": status.pid,
        "workers": status.workers,
        "offloads": {"in_use": in_use(status), "lacking": lacking(status)},
        "segmentation": status.segmentation,
        "coalescing": status.coalescing,
        "receive_buffer_bytes": status.receive_buffer,
        **_counters(status),
        "peers": [_traffic(row) for row in report.traffic],
    }


def _counters(status: Status) -> Document:
    totals = {name: status.counters.get(counter, 0) for counter, name in TOTALS.items()}
    drops = {reason: count for reason, count in sorted(status.counters.items()) if reason not in TOTALS}
    return {"totals": totals, "drops_packets": drops}


def _traffic(row: PeerTraffic) -> Document:
    return {
        "key": row.key,
        "sent_packets": row.sent,
        "sent_bytes": row.sent_bytes,
        "received_packets": row.received,
        "received_bytes": row.received_bytes,
    }
