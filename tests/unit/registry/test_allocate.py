"""Who gets which subnet: reuse where possible, else anything free, and never what somebody has."""

import json
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flanneld_py.registry.allocate import (
    Claim,
    Create,
    LengthRefused,
    OutOfSubnets,
    Reuse,
    choose,
    incompatibility,
    overlapping,
    room,
)
from flanneld_py.registry.config import NetworkConfig, parse_config
from flanneld_py.registry.model import NO_IPV4, Json, Lease, LeaseAttrs, Subnets, stand_in

US = IPv4Address("192.0.2.1")
OTHER = IPv4Address("192.0.2.2")
US6 = IPv6Address("2001:db8::1")
OTHER6 = IPv6Address("2001:db8::2")
RNG = Random(7)


def network(**fields: Json) -> NetworkConfig:
    return parse_config(json.dumps({"Network": "10.3.0.0/16", **fields}).encode())


SINGLE = network()
DUAL = network(EnableIPv6=True, IPv6Network="fc00::/48")
SIX = network(EnableIPv4=False, EnableIPv6=True, IPv6Network="fc00::/48")
FOUR = network(Network="10.3.0.0/22", SubnetMin="10.3.0.0")


def subnets(v4: str, v6: str | None = None) -> Subnets:
    return Subnets(IPv4Network(v4), None if v6 is None else IPv6Network(v6))


def lease(v4: str, v6: str | None = None, public_ip: IPv4Address = OTHER, mod_revision: int = 1) -> Lease:
    return Lease(subnets(v4, v6), LeaseAttrs(public_ip), mod_revision=mod_revision, lease_id=1)


def create(config: NetworkConfig, leases: list[Lease], claim: Claim, seed: int = 0) -> Create:
    choice = choose(config, leases, claim, Random(seed))
    assert isinstance(choice, Create)
    return choice


def test_the_lease_of_our_owner_record_is_reused_whatever_its_public_ip() -> None:
    mine, same_address = lease("10.3.5.0/24", public_ip=OTHER), lease("10.3.6.0/24", public_ip=US, mod_revision=9)
    assert choose(SINGLE, [same_address, mine], Claim(US, owned=mine.subnets), RNG) == Reuse(mine, "identity")


def test_the_lease_with_our_public_ip_is_reused() -> None:
    mine = lease("10.3.5.0/24", public_ip=US)
    assert choose(SINGLE, [lease("10.3.4.0/24"), mine], Claim(US), RNG) == Reuse(mine, "public-ip")
    gone = subnets("10.3.9.0/24")
    assert choose(SINGLE, [mine], Claim(US, owned=gone), RNG) == Reuse(mine, "public-ip")


def test_of_several_with_our_public_ip_the_newest_that_fits_is_reused() -> None:
    leases = [
        lease("10.3.5.0/24", public_ip=US, mod_revision=3),
        lease("10.3.6.0/24", public_ip=US, mod_revision=5),
        lease("10.3.6.0/23", public_ip=US, mod_revision=8),
    ]
    assert choose(SINGLE, leases, Claim(US), RNG) == Reuse(leases[1], "public-ip")


@pytest.mark.parametrize("v4", ["10.4.5.0/24", "10.3.0.0/24", "10.3.5.0/31", "10.3.4.0/23"])
def test_our_lease_that_does_not_fit_is_replaced(v4: str) -> None:
    mine = lease(v4, public_ip=US)
    choice = create(SINGLE, [mine], Claim(US))
    assert choice.replaces is mine
    assert incompatibility(SINGLE, choice.subnets) is None


def test_our_lease_of_the_owner_record_is_the_one_replaced() -> None:
    mine = lease("10.4.5.0/24")
    assert create(SINGLE, [lease("10.4.6.0/24", public_ip=US), mine], Claim(US, owned=mine.subnets)).replaces is mine


@pytest.mark.parametrize("by", ["identity", "public-ip"])
def test_turning_ipv6_on_keeps_the_ipv4_subnet(by: str) -> None:
    mine = lease("10.3.5.0/24", public_ip=US if by == "public-ip" else OTHER)
    choice = create(DUAL, [mine], Claim(US, owned=mine.subnets if by == "identity" else None))
    assert choice.replaces is mine
    assert choice.subnets.v4 == mine.subnets.v4
    assert incompatibility(DUAL, choice.subnets) is None


def test_turning_ipv6_off_keeps_the_ipv4_subnet() -> None:
    mine = lease("10.3.5.0/24", "fc00:0:0:5::/64", public_ip=US)
    assert create(SINGLE, [mine], Claim(US)) == Create(subnets("10.3.5.0/24"), mine)


def test_a_new_ipv4_network_keeps_the_ipv6_subnet() -> None:
    mine = lease("10.4.5.0/24", "fc00:0:0:5::/64", public_ip=US)
    assert create(DUAL, [mine], Claim(US)).subnets.v6 == mine.subnets.v6


def test_a_subnet_of_ours_that_overlaps_anothers_lease_is_not_kept() -> None:
    mine, other = lease("10.3.5.0/24", public_ip=US), lease("10.3.5.128/25")
    choice = create(DUAL, [mine, other], Claim(US))
    assert not choice.subnets.v4.overlaps(other.subnets.v4)


def test_the_subnets_of_a_lease_that_is_gone_are_taken_again() -> None:
    had = subnets("10.3.5.0/24", "fc00:0:0:5::/64")
    assert create(DUAL, [], Claim(US, owned=had, previous=(IPv4Network("10.3.6.0/24"),))) == Create(had)


def test_the_previous_subnet_is_taken_again() -> None:
    assert create(SINGLE, [], Claim(US, previous=(IPv4Network("10.3.6.0/24"),))) == Create(subnets("10.3.6.0/24"))


@pytest.mark.parametrize(
    "previous", ["10.4.6.0/24", "10.3.6.0/23", "10.3.0.0/24", "10.3.7.0/24", "10.3.8.0/24", "10.3.8.128/25"]
)
def test_the_previous_subnet_must_fit_and_be_free(previous: str) -> None:
    leases = [lease("10.3.7.0/24"), lease("10.3.8.128/26")]
    choice = create(SINGLE, leases, Claim(US, previous=(IPv4Network(previous),)))
    assert choice.subnets.v4 != IPv4Network(previous)


def test_all_free_subnets_are_equally_likely() -> None:
    free = {IPv4Network((int(IPv4Address("10.3.0.0")) + 256 * n, 24)) for n in range(1, 256)} - {
        IPv4Network("10.3.9.0/24"),
        IPv4Network("10.3.250.0/24"),
    }
    leases = [lease("10.3.9.0/24"), lease("10.3.250.0/24")]
    rng = Random(1)
    counts: Counter[IPv4Network] = Counter()
    for _ in range(100 * len(free)):
        choice = choose(SINGLE, leases, Claim(US), rng)
        assert isinstance(choice, Create)
        counts[choice.subnets.v4] += 1
    assert counts.keys() == free
    # 100 expected of each; six standard deviations.
    assert all(40 < count < 160 for count in counts.values())


def test_no_subnet_with_the_address_of_a_host_is_taken() -> None:
    us = Claim(IPv4Address("10.3.1.9"), previous=(IPv4Network("10.3.1.0/24"), IPv4Network("10.3.2.0/24")))
    other = lease("10.3.0.0/24", public_ip=IPv4Address("10.3.2.9"))
    assert {create(FOUR, [other], us, seed).subnets for seed in range(20)} == {subnets("10.3.3.0/24")}
    six = Claim(US, public_ip6=IPv6Address("fc00::1:0:0:0:1"), previous=(IPv6Network("fc00:0:0:1::/64"),))
    assert create(DUAL, [], six).subnets.v6 != IPv6Network("fc00:0:0:1::/64")


def test_a_network_of_millions_of_subnets_is_not_enumerated() -> None:
    config = network(Network="10.0.0.0/8", SubnetLen=30, EnableIPv6=True, IPv6Network="fc00::/16", IPv6SubnetLen=126)
    base4, base6 = int(IPv4Address("10.0.0.0")), int(IPv6Network("fc00::/16").network_address)
    leases = [
        Lease(Subnets(IPv4Network((base4 + 4 * n, 30)), IPv6Network((base6 + 4 * n, 126))), LeaseAttrs(OTHER))
        for n in range(2000)
    ]
    choice = create(config, leases, Claim(US))
    assert incompatibility(config, choice.subnets) is None
    assert choice.subnets not in [lease.subnets for lease in leases]


def test_the_last_free_subnet_is_found() -> None:
    leases = [lease("10.3.0.0/24"), lease("10.3.2.0/23")]
    assert create(FOUR, leases, Claim(US)).subnets == subnets("10.3.1.0/24")


@pytest.mark.parametrize(
    "taken",
    [
        ["10.3.0.0/24", "10.3.1.0/24", "10.3.2.0/24", "10.3.3.0/24"],
        ["10.3.0.0/22"],
        ["10.3.0.0/30", "10.3.1.4/30", "10.3.2.252/30", "10.3.3.0/24", "10.3.2.0/30"],
    ],
)
def test_out_of_subnets_says_what_to_do(taken: list[str]) -> None:
    with pytest.raises(OutOfSubnets) as caught:
        choose(FOUR, [lease(v4) for v4 in taken], Claim(US), RNG)
    assert str(caught.value) == (
        "Network 10.3.0.0/22 with SubnetLen 24 has 4 subnets, from 10.3.0.0 to 10.3.3.0, and all are leased: "
        "delete the leases of hosts that are gone, or make the Network larger or its subnets smaller"
    )


def test_out_of_ipv6_subnets_names_the_ipv6_fields() -> None:
    config = network(
        EnableIPv6=True, IPv6Network="fc00::/62", IPv6SubnetMin="fc00:0:0:1::", IPv6SubnetMax="fc00:0:0:1::"
    )
    with pytest.raises(OutOfSubnets, match=r"^IPv6Network fc00::/62 with IPv6SubnetLen 64 has 1 subnets"):
        choose(config, [lease("10.3.1.0/24", "fc00:0:0:1::/64")], Claim(US), RNG)


def test_ipv6_alone_is_leased_without_ipv4() -> None:
    others = [lease("0.0.0.0/31", "fc00:0:0:5::/64"), lease("10.3.6.0/24", "fc00:0:0:6::/64")]
    previous = (IPv4Network("10.3.7.0/24"), IPv6Network("fc00:0:0:7::/64"))
    choice = create(SIX, others, Claim(None, None, previous, US6))
    assert choice == Create(subnets("0.0.0.0/31", "fc00:0:0:7::/64"))
    taken = [*others, Lease(choice.subnets, LeaseAttrs(OTHER))]
    assert create(SIX, taken, Claim(None, None, previous, US6)).subnets.v6 not in [each.subnets.v6 for each in taken]


def test_without_ipv4_the_lease_with_our_public_ipv6_is_reused() -> None:
    mine = Lease(subnets("0.0.0.0/31", "fc00:0:0:5::/64"), LeaseAttrs(stand_in(US6), US6))
    other = Lease(subnets("0.0.0.0/31", "fc00:0:0:6::/64"), LeaseAttrs(stand_in(OTHER6), OTHER6))
    assert choose(SIX, [other, mine], Claim(None, public_ip6=US6), RNG) == Reuse(mine, "public-ip")


@pytest.mark.parametrize("by", ["identity", "public-ip"])
def test_turning_ipv4_off_and_on_keeps_the_ipv6_subnet(by: str) -> None:
    dual = Lease(subnets("10.3.5.0/24", "fc00:0:0:5::/64"), LeaseAttrs(US, US6), lease_id=1)
    alone = Lease(subnets("0.0.0.0/31", "fc00:0:0:5::/64"), LeaseAttrs(stand_in(US6), US6), lease_id=1)
    off = create(SIX, [dual], Claim(None, dual.subnets if by == "identity" else None, public_ip6=US6))
    assert off == Create(alone.subnets, dual)
    on = create(DUAL, [alone], Claim(US, alone.subnets if by == "identity" else None, public_ip6=US6))
    assert on.replaces is alone
    assert on.subnets.v6 == dual.subnets.v6
    assert incompatibility(DUAL, on.subnets) is None


def test_a_reservation_follows_when_a_family_is_turned_on_or_off() -> None:
    reserved = Lease(subnets("10.3.5.0/24"), LeaseAttrs(US))
    on = create(DUAL, [reserved], Claim(US))
    assert (on.replaces, on.subnets.v4) == (reserved, reserved.subnets.v4)
    both = Lease(on.subnets, LeaseAttrs(US))
    assert create(SINGLE, [both], Claim(US)) == Create(reserved.subnets, both)


def test_a_reservation_outside_of_the_network_stays() -> None:
    assert create(DUAL, [Lease(subnets("10.4.5.0/24"), LeaseAttrs(US))], Claim(US)).replaces is None


def test_a_contested_lease_gives_way_in_the_contested_family_only() -> None:
    mine = lease("10.3.5.0/24", "fc00:0:0:5::/64", US)
    rival = lease("10.3.6.0/24", "fc00:0:0:5::/64")
    assert choose(DUAL, [mine, rival], Claim(US), RNG) == Reuse(mine, "public-ip")
    choice = create(DUAL, [mine, rival], Claim(US, contested=mine.subnets))
    assert choice.replaces is mine
    assert choice.subnets.v4 == mine.subnets.v4
    assert choice.subnets.v6 != mine.subnets.v6


def test_leases_overlap_in_either_family_but_not_in_the_one_they_lack() -> None:
    dual = subnets("10.3.5.0/24", "fc00:0:0:5::/64")
    alone = subnets("0.0.0.0/31", "fc00:0:0:7::/64")
    leases = [
        lease("10.3.5.128/25", "fc00:0:0:9::/64"),
        lease("10.3.6.0/24", "fc00::/56"),
        lease("10.3.7.0/24"),
        lease("0.0.0.0/31", "fc00:0:0:6::/64"),
        lease("10.3.5.0/24", "fc00:0:0:5::/64"),
    ]
    assert overlapping(dual, leases, DUAL) == leases[:2]
    assert overlapping(alone, leases, DUAL) == leases[1:2]


@pytest.mark.parametrize(
    ("config", "leased", "reason"),
    [
        (SINGLE, subnets("10.3.5.0/24"), None),
        (DUAL, subnets("10.3.5.0/24", "fc00:0:0:5::/64"), None),
        (SINGLE, subnets("10.3.5.192/26"), None),
        (SINGLE, subnets("10.3.255.252/30"), None),
        (SINGLE, subnets("10.3.4.0/23"), "10.3.4.0/23 is a /23, and subnets are /24 to /30"),
        (SINGLE, subnets("10.3.5.0/31"), "10.3.5.0/31 is a /31, and subnets are /24 to /30"),
        (SINGLE, subnets("10.3.0.0/24"), "10.3.0.0/24 is not between 10.3.1.0 and 10.3.255.0"),
        (SINGLE, subnets("10.3.5.0/24", "fc00:0:0:5::/64"), "fc00:0:0:5::/64 is IPv6, which is off"),
        (DUAL, subnets("10.3.5.0/24"), "an IPv6 subnet is missing"),
        (DUAL, subnets("10.3.5.0/24", "fc00::/64"), "fc00::/64 is not between fc00:0:0:1:: and fc00:0:0:ffff::"),
        (SIX, subnets("10.3.5.0/24"), "10.3.5.0/24 is IPv4, which is off"),
        (SIX, subnets("0.0.0.0/31", "fc00:0:0:5::/64"), None),
        (DUAL, subnets("0.0.0.0/31", "fc00:0:0:5::/64"), "an IPv4 subnet is missing"),
    ],
)
def test_why_a_lease_does_not_fit(config: NetworkConfig, leased: Subnets, reason: str | None) -> None:
    assert incompatibility(config, leased) == reason


# A network small enough to be full now and then: 16 subnets of 16 addresses, and leases of /24 to /31 in and around it.
small = st.builds(
    lambda low, high, families: network(
        Network="10.3.0.0/24",
        SubnetLen=28,
        SubnetMin=f"10.3.0.{16 * min(low, high)}",
        SubnetMax=f"10.3.0.{16 * max(low, high)}",
        EnableIPv4="4" in families,
        EnableIPv6="6" in families,
        IPv6Network="fd00:3::/120",
        IPv6SubnetLen=124,
    ),
    st.integers(0, 15),
    st.integers(0, 15),
    st.sampled_from(["4", "6", "46"]),
)
near4 = st.builds(
    lambda offset, length: IPv4Network((int(IPv4Address("10.2.255.0")) + offset, length), strict=False),
    st.integers(0, 767),
    st.sampled_from([24, 27, 28, 28, 28, 28, 28, 29, 31]),
)
near6 = st.builds(
    lambda offset, length: IPv6Network(
        (int(IPv6Network("fd00:3::/120").network_address) + offset, length), strict=False
    ),
    st.integers(0, 511),
    st.sampled_from([120, 123, 124, 124, 124, 124, 124, 125, 127]),
)
near = st.builds(Subnets, near4, st.none() | near6) | st.builds(Subnets, st.just(NO_IPV4), near6)
clusters = st.lists(
    st.builds(
        lambda leased, ours, revision, lease_id: Lease(
            leased,
            LeaseAttrs(US, US6) if ours else LeaseAttrs(OTHER, OTHER6),
            mod_revision=revision,
            lease_id=lease_id,
        ),
        near,
        st.sampled_from([False] * 9 + [True]),
        st.integers(1, 50),
        st.sampled_from([0, 1, 1, 1]),
    ),
    max_size=24,
    unique_by=lambda lease: lease.subnets,
)
claims = st.builds(
    Claim,
    st.just(US),
    st.none() | near,
    st.just(()) | st.tuples(near4) | st.tuples(near4, near6),
    st.just(US6),
    st.none(),
    st.sampled_from([None, None, 28, 29, 30]),
)


def free(config: NetworkConfig, taken: list[Subnets], length: int | None) -> tuple[set[IPv4Network], set[IPv6Network]]:
    """Enumerate the free subnets of each family, slowly."""
    v4 = set(IPv4Network("10.3.0.0/24").subnets(new_prefix=length or 28))
    v6 = set(IPv6Network("fd00:3::/120").subnets(new_prefix=124))
    free4 = {NO_IPV4}
    if config.ipv4 is not None:
        low, high = config.ipv4.subnet_min, config.ipv4.subnet_max + 15
        free4 = {net for net in v4 if low <= net.network_address <= high and not any(net.overlaps(t.v4) for t in taken)}
    if config.ipv6 is None:
        return free4, set()
    low6, high6 = config.ipv6.subnet_min, config.ipv6.subnet_max
    taken6 = [t.v6 for t in taken if t.v6 is not None]
    return free4, {
        net for net in v6 if low6 <= net.network_address <= high6 and not any(net.overlaps(t) for t in taken6)
    }


def follows(config: NetworkConfig, leased: Subnets) -> bool:
    """Tell whether a lease fits in the families that are both leased and on."""
    common = replace(
        config,
        ipv4=config.ipv4 if leased.v4 != NO_IPV4 else None,
        ipv6=config.ipv6 if leased.v6 is not None else None,
    )
    kept = Subnets(leased.v4 if common.ipv4 else NO_IPV4, leased.v6 if common.ipv6 else None)
    return bool(kept.families) and incompatibility(common, kept) is None


def _fits_beside(
    config: NetworkConfig, leases: list[Lease], replaced: Lease | None, subnet: IPv4Network | IPv6Network
) -> bool:
    """Tell whether a subnet of the size of any that we had may be kept."""
    leased = Subnets(subnet) if isinstance(subnet, IPv4Network) else Subnets(NO_IPV4, subnet)
    return follows(config, leased) and not any(
        leased.overlaps(lease.subnets) for lease in leases if lease is not replaced
    )


@given(small, clusters, claims, st.randoms(use_true_random=False))
def test_a_subnet_is_found_exactly_if_one_is_free(
    config: NetworkConfig, leases: list[Lease], claim: Claim, rng: Random
) -> None:
    own = [lease for lease in leases if lease.subnets == claim.owned or lease.attrs.public_ip == US]
    ours = [lease for lease in own if lease.lease_id or follows(config, lease.subnets)]
    replaced = max(
        ours, key=lambda lease: (lease.subnets == claim.owned, not lease.lease_id, lease.mod_revision), default=None
    )
    try:
        choice = choose(config, leases, claim, rng)
    except OutOfSubnets:
        v4, v6 = free(config, [lease.subnets for lease in leases if lease is not replaced], claim.subnet_len)
        assert not v4 or (config.ipv6 is not None and not v6)
        return
    match choice:
        case Reuse(lease, _):
            assert lease in own
            assert incompatibility(config, lease.subnets) is None
        case Create(chosen, replaces):
            assert all(incompatibility(config, lease.subnets) is not None for lease in own)
            assert replaces is replaced
            v4, v6 = free(config, [lease.subnets for lease in leases if lease is not replaces], claim.subnet_len)
            had = [replaces.subnets.families if replaces is not None else ()]
            had += [claim.owned.families if claim.owned is not None else (), claim.previous]
            kept = {subnet for subnets in had for subnet in subnets if _fits_beside(config, leases, replaces, subnet)}
            assert chosen.v4 in v4 | kept
            assert chosen.v6 in v6 | kept if config.ipv6 is not None else chosen.v6 is None


@given(small, clusters, claims, st.randoms(use_true_random=False), st.booleans())
def test_a_choice_is_stable(
    config: NetworkConfig, leases: list[Lease], claim: Claim, rng: Random, remembered: bool
) -> None:
    """Once the choice is written, choosing again reuses it, from the owner record or from the PublicIP alone."""
    try:
        choice = choose(config, leases, claim, rng)
    except OutOfSubnets:
        return
    match choice:
        case Reuse(lease, _):
            chosen, rest = lease.subnets, [other for other in leases if other is not lease]
        case Create(chosen, replaces):
            rest = [other for other in leases if other is not replaces]
    written = [*rest, Lease(chosen, LeaseAttrs(US, US6), mod_revision=100, lease_id=1)]
    again = choose(config, written, Claim(US, chosen if remembered else None, public_ip6=US6), rng)
    assert again == Reuse(written[-1], "identity" if remembered else "public-ip")


def test_a_reservation_goes_before_a_lease_with_our_address_but_not_before_what_we_have() -> None:
    had = lease("10.3.7.0/24", public_ip=US, mod_revision=9)
    reserved = Lease(subnets("10.3.9.0/24"), LeaseAttrs(US), mod_revision=1)
    assert choose(SINGLE, [had, reserved], Claim(US), Random(0)) == Reuse(reserved, "public-ip")
    assert choose(SINGLE, [had, reserved], Claim(US, owned=had.subnets), Random(0)) == Reuse(had, "identity")


def test_a_key_that_cannot_be_read_blocks_its_subnet() -> None:
    claim = Claim(US, previous=(IPv4Network("10.3.9.0/24"),))
    choice = choose(SINGLE, [], claim, Random(0), [subnets("10.3.9.0/24")])
    assert isinstance(choice, Create)
    assert choice.subnets != subnets("10.3.9.0/24")


@pytest.mark.parametrize("wide", [("0.0.0.0/1", None), ("10.0.0.0/8", None), ("10.9.0.0/24", "fc00::/7")])
def test_a_subnet_that_reaches_beyond_the_network_takes_nothing_from_anybody(wide: tuple[str, str | None]) -> None:
    odd = lease(*wide)
    choice = create(DUAL, [odd], Claim(US, public_ip6=US6))
    assert overlapping(choice.subnets, [odd], DUAL) == []
    blocked = choose(DUAL, [], Claim(US, public_ip6=US6), RNG, [odd.subnets])
    assert isinstance(blocked, Create)


def test_an_own_lease_of_another_length_is_kept_whatever_length_is_asked_for() -> None:
    for v4 in ("10.3.5.64/26", "10.3.5.0/24"):
        mine = lease(v4, public_ip=US)
        for asked in (None, 24, 26, 28):
            assert choose(SINGLE, [mine], Claim(US, subnet_len=asked), RNG) == Reuse(mine, "public-ip")


def test_a_smaller_subnet_is_taken_where_a_whole_one_is_begun() -> None:
    """Else four small hosts would cost four whole subnets."""
    leases = [lease("10.3.9.0/24"), lease("10.3.20.64/26")]
    for seed in range(20):
        chosen = create(SINGLE, leases, Claim(US, subnet_len=26), seed).subnets.v4
        assert chosen in (IPv4Network("10.3.20.0/26"), IPv4Network("10.3.20.128/26"), IPv4Network("10.3.20.192/26"))
    rest = [lease(f"10.3.20.{base}/26") for base in (0, 128, 192)]
    chosen = create(SINGLE, [*leases, *rest], Claim(US, subnet_len=26)).subnets.v4
    assert chosen.prefixlen == 26
    assert chosen.supernet(new_prefix=24) not in (IPv4Network("10.3.9.0/24"), IPv4Network("10.3.20.0/24"))


def test_a_whole_subnet_is_taken_beside_the_small_ones() -> None:
    leases = [lease("10.3.1.0/26"), lease("10.3.2.64/30"), lease("10.3.3.0/30")]
    config = network(Network="10.3.0.0/22", SubnetMin="10.3.0.0")
    assert create(config, leases, Claim(US)).subnets == subnets("10.3.0.0/24")


@pytest.mark.parametrize("length", [23, 31, 32])
def test_a_length_that_the_network_does_not_have_is_refused(length: int) -> None:
    with pytest.raises(LengthRefused, match=rf"--subnet-len is {length}.*from 24 to 30"):
        choose(SINGLE, [], Claim(US, subnet_len=length), RNG)


def test_how_much_room_there_is() -> None:
    leases = [lease("10.3.1.0/24", "fc00:0:0:1::/64"), lease("10.3.2.64/26", "fc00:0:0:2::/64"), lease("10.9.0.0/24")]
    assert list(room(DUAL, leases, Claim(US))) == [("10.3.0.0/16", 253, 255), ("fc00::/48", 65533, 65535)]
    assert next(room(DUAL, leases, Claim(US, subnet_len=26))) == ("10.3.0.0/16", 4 * 255 - 5, 4 * 255)
