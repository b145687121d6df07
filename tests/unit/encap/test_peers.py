from __future__ import annotations

import itertools
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.encap.backends.base import Underlay
from flanneld_py.encap.backends.vxlan import Vxlan
from flanneld_py.encap.peers import Own, Peers
from flanneld_py.encap.state import Entry
from flanneld_py.registry.config import parse_config
from flanneld_py.registry.model import Json, Lease, LeaseAttrs, Record, Rejected, Subnets

CONFIG = parse_config(b'{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}')
UNDERLAY = Underlay("eth0", 1500, IPv4Address("192.0.2.1"), IPv4Address("192.0.2.1"))
BACKEND = Vxlan(CONFIG, UNDERLAY, lambda _: False, nexthop_objects=True)
OWN = Own(
    "k/10.5.1.0-24",
    Subnets(IPv4Network("10.5.1.0/24")),
    IPv4Address("192.0.2.1"),
    IPv4Address("192.0.2.100"),
    frozenset([IPv4Address("192.0.2.255")]),
)


def make_peers() -> Peers:
    return Peers(CONFIG, BACKEND, OWN)


def lease(subnet: str, public_ip: str, mac: str = "", created: int = 0, modified: int = 0, **changes: object) -> Lease:
    network = IPv4Network(subnet)
    data: Json = {"VNI": 1, "VtepMAC": mac or f"02:00:00:00:{public_ip.rpartition('.')[2].zfill(2)[-2:]}:01"}
    attrs = {"backend_type": "vxlan", "backend_data": data, **changes}
    return Lease(
        Subnets(network),
        LeaseAttrs(IPv4Address(public_ip), **attrs),  # type: ignore[arg-type]
        created or int(network.network_address) % 2**16,
        modified,
    )


def key(subnet: str) -> str:
    return "k/" + subnet.replace("/", "-")


GOOD = ("k/10.5.2.0-24", lease("10.5.2.0/24", "192.0.2.2"))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Rejected("value is not JSON"), "not JSON"),
        (lease("10.6.3.0/24", "192.0.2.3"), "outside Network 10.5.0.0/16"),
        (lease("10.5.1.128/25", "192.0.2.3"), "overlaps our own 10.5.1.0/24"),
        (lease("10.5.0.0/16", "192.0.2.3"), "overlaps our own"),
        (lease("10.5.3.0/24", "192.0.2.1"), "is our own"),
        (lease("10.5.3.0/24", "224.0.0.5"), "no address of a host"),
        (lease("10.5.3.0/24", "192.0.2.255"), "PublicIP 192.0.2.255 is the broadcast address of the underlay"),
        (lease("10.5.3.0/24", "0.0.0.0"), "no address of a host"),
        (lease("10.5.3.0/24", "127.0.0.1"), "no address of a host"),
        (lease("10.5.3.0/24", "255.255.255.255"), "no address of a host"),
        (lease("10.5.3.0/24", "192.0.2.3", backend_type="host-gw"), 'backend type is "host-gw"'),
        (lease("10.5.3.0/24", "192.0.2.3", backend_type=""), 'backend type is "none"'),
        (lease("10.5.3.0/24", "192.0.2.3", mac="nonsense"), "no MAC address"),
        (lease("10.5.3.0/24", "192.0.2.3", mac="01:00:5e:00:00:01"), "no unicast MAC"),
        (lease("10.5.3.0/24", "192.0.2.3", mac="00:00:00:00:00:00"), "no unicast MAC"),
        (lease("10.5.3.0/24", "192.0.2.3", backend_data=None), "no JSON object"),
        (lease("10.5.3.0/24", "192.0.2.3", backend_data={"VNI": 1}), "no MAC address"),
        (lease("10.5.3.0/24", "192.0.2.3", mac="aabbccddee 02    "), "no MAC address"),
        (lease("10.5.3.0/24", "192.0.2.3", backend_data={"Vni": 7, "VtepMAC": "02:00:00:00:00:03"}), "VNI is 7"),
        (lease("10.5.3.0/24", "10.5.3.9"), "inside its own subnet 10.5.3.0/24: the tunnel would lead into itself"),
        (lease("10.5.3.0/24", "10.5.1.9"), "inside our own subnet 10.5.1.0/24: the tunnel would lead into itself"),
        (lease("10.5.3.0/24", "192.0.2.100"), "is our own"),
        (lease("10.5.3.0/24", "192.0.2.3", backend_data={"VNI": 7, "VtepMAC": "02:00:00:00:00:03"}), "VNI is 7"),
    ],
)
def test_a_bad_record_is_left_out_with_its_reason_and_the_others_work(record: Record, reason: str) -> None:
    peers = make_peers()
    verdicts = peers.update([GOOD, ("k/bad", record)])
    assert reason in peers.rejected["k/bad"]
    assert verdicts["k/bad"] == ()
    assert len(verdicts[GOOD[0]]) == 4
    assert peers.used == {GOOD[0]}


def test_a_host_inside_network_is_a_peer_where_no_subnet_covers_it() -> None:
    peers = make_peers()
    assert len(peers.update([("k", lease("10.5.3.0/24", "10.5.240.3"))])["k"]) == 4
    assert not peers.rejected


def test_keys_in_any_case_and_unknown_fields_are_read_as_flannel_does() -> None:
    peers = make_peers()
    odd = lease("10.5.3.0/24", "192.0.2.3", backend_data={"vni": 1, "vtepmac": "02:00:00:00:00:03", "new": [1]})
    assert len(peers.update([("k", odd)])["k"]) == 4


def test_our_own_record_is_no_peer() -> None:
    peers = make_peers()
    assert peers.update([(OWN.key, lease("10.5.1.0/24", "192.0.2.1"))]) == {OWN.key: ()}
    assert not peers.rejected


def test_a_wide_subnet_loses_against_those_of_the_configured_length() -> None:
    peers = make_peers()
    wide = ("k/wide", lease("10.5.2.0/23", "192.0.2.9", created=1))
    verdicts = peers.update([wide, GOOD])
    assert verdicts["k/wide"] == ()
    assert "overlaps 10.5.2.0/24" in peers.rejected["k/wide"]
    assert peers.update([(GOOD[0], None)])["k/wide"] != (), "free again when the other has gone"


@pytest.mark.parametrize(("created", "used"), [(1, "k/small"), (9, "k/whole")])
def test_of_a_small_subnet_and_a_whole_one_the_first_one_wins(created: int, used: str) -> None:
    """Hosts may have smaller ones (`--subnet-len`)."""
    peers = make_peers()
    small = lease("10.5.2.64/26", "192.0.2.9", created=created)
    peers.update([("k/small", small), ("k/whole", lease("10.5.2.0/24", "192.0.2.2", created=5))])
    assert peers.used == {used}


def test_of_equal_rivals_for_a_subnet_the_first_one_wins() -> None:
    peers = make_peers()
    early = lease("10.5.2.0/24", "192.0.2.2", created=5)
    late = lease("10.5.2.0/24", "192.0.2.3", created=6)
    peers.update([("k/late", late), ("k/early", early)])
    assert peers.used == {"k/early"}


def test_a_host_that_moved_is_used_at_its_newest_lease() -> None:
    peers = make_peers()
    old = lease("10.5.2.0/24", "192.0.2.2", mac="02:00:00:00:00:02", modified=5)
    new = lease("10.5.3.0/24", "192.0.2.3", mac="02:00:00:00:00:02", modified=9)
    peers.update([("k/new", new), ("k/old", old)])
    assert peers.used == {"k/new"}
    assert "newer lease" in peers.rejected["k/old"]
    assert len(peers.update([("k/new", None)])["k/old"]) == 4


some_leases = st.lists(
    st.tuples(
        st.sampled_from(["10.5.2.0/24", "10.5.2.0/25", "10.5.2.128/25", "10.5.2.0/23", "10.5.3.0/24", "10.5.0.0/17"]),
        st.integers(2, 5),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=5,
)


HOSTS = {2: "192.0.2.2", 3: "192.0.2.3", 4: "10.5.240.4", 5: "10.5.3.5"}
"""Two are inside Network, one of them in what may be leased."""


@given(some_leases)
def test_the_verdict_depends_on_the_records_not_on_their_history(chosen: list[tuple[str, int, int]]) -> None:
    """The same records in any order, one by one or together, with detours: the same peers, with disjoint subnets."""
    records = {
        f"k/{index}": lease(subnet, HOSTS[host], mac=f"02:00:00:00:00:0{host}", created=when, modified=when)
        for index, (subnet, host, when) in enumerate(chosen)
    }
    whole = make_peers()
    whole.update(records.items())
    for order in itertools.islice(itertools.permutations(records), 6):
        stepwise = make_peers()
        table: dict[str, tuple[Entry, ...]] = {}
        for name in order:
            table |= stepwise.update([("k/0", GOOD[1])])
            table |= stepwise.update([(name, records[name])])
        table |= stepwise.update([("k/0", records["k/0"])])
        assert stepwise.used == whole.used
        assert stepwise.rejected == whole.rejected
        assert {name for name, entries in table.items() if entries} == whole.used
    used = [records[name].subnets.v4 for name in whole.used]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(used, 2))
    assert not any(records[name].attrs.public_ip in records[name].subnets.v4 for name in whole.used)
