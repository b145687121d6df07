"""The packet filters of a real kernel, in a namespace of its own: nobody else's rule is touched, nothing is left."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from flanneld_py.encap.firewall.enforce import Asked, Enforcer, FilterChoice, Outcome
from flanneld_py.encap.firewall.policy import Policy
from flanneld_py.encap.firewall.tools import HostTools
from tests.contract.kernel_host import entered, throwaway_namespace
from tests.patience import patient

pytestmark = pytest.mark.root

V4 = Policy(
    ip_network("10.42.0.0/16"),
    ip_network("10.42.5.0/24"),
    masquerade=True,
    excluded=(ip_network("10.0.0.1"),),
    device="flannel.1",
    underlay="eth0",
    direct=frozenset(map(ip_address, ("192.0.2.7", "192.0.2.8"))),
)
V6 = Policy(
    ip_network("fd42::/48"),
    ip_network("fd42:0:0:5::/64"),
    masquerade=True,
    excluded=(ip_network("fd00:aa::/32"),),
    device="flannel-v6.1",
    underlay="eth0",
    direct=frozenset((ip_address("2001:db8::7"),)),
)
BOTH = (V4, V6)
OFF = tuple(replace(policy, masquerade=False, forward=False) for policy in BOTH)

OTHERS = """
for i in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
  $i -P FORWARD DROP
  $i -A FORWARD -i eth7 -m comment --comment 'not "ours"' -j ACCEPT
  $i -A FORWARD -j REJECT
  $i -t nat -A POSTROUTING -o eth7 -j MASQUERADE
  $i -t nat -N FLANNELETTE
  $i -t nat -A POSTROUTING -j FLANNELETTE
  $i -t mangle -A FORWARD -p tcp --syn -j TCPMSS --clamp-mss-to-pmtu
done
for i in iptables-nft ip6tables-nft; do $i -t raw -A PREROUTING -p udp --dport 53 -j CT --notrack; done
nft add table ip flannel-other
nft add chain ip flannel-other postrtg '{ type nat hook postrouting priority 100; }'
nft add rule ip flannel-other postrtg ip saddr 192.0.2.0/24 masquerade
"""

FLANNELS_IPTABLES = """
for i in {iptables} {ip6tables}; do
  $i -t nat -N FLANNEL-POSTRTG
  $i -t nat -A FLANNEL-POSTRTG -m comment --comment 'flanneld masq' -j RETURN
  $i -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG
  $i -N FLANNEL-FWD
  $i -A FLANNEL-FWD -m comment --comment 'flanneld forward' -j ACCEPT
  $i -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD
done
"""

FLANNELS_NFT = """
for f in ip:flannel-ipv4 ip6:flannel-ipv6; do
  nft add table ${f%:*} ${f#*:}
  nft add chain ${f%:*} ${f#*:} postrtg '{ type nat hook postrouting priority 100; }'
  nft add rule ${f%:*} ${f#*:} postrtg masquerade
done
"""


@pytest.fixture(autouse=True)
def _in_a_namespace() -> Iterator[None]:
    with throwaway_namespace() as name, entered(name):
        yield


def sh(script: str) -> str:
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, timeout=patient(30), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


SHARED = ("filter FORWARD", "nat POSTROUTING", "raw PREROUTING")


def everything() -> str:
    """All rules, without dates; with handles, so that a rule which is replaced by its like is seen."""
    saves = "iptables-save; ip6tables-save; iptables-legacy-save; ip6tables-legacy-save"
    return sh(f"(nft -a list ruleset; {saves}) | sed '/^# [GC]/d'")


def foreign() -> str:
    """Everybody else's rules, wherever ours may stand beside them."""
    chains = " ".join(f"'{kind} {chain}'" for kind in ("ip", "ip6") for chain in SHARED)
    return sh(
        f"(for chain in {chains}; do nft -a list chain $chain; done; nft -a list table ip flannel-other;"
        " iptables-save; ip6tables-save; iptables-legacy-save; ip6tables-legacy-save)"
        " | grep -v '^# [GC]' | grep -v 'FLANNEL-[PFR]'"
    )


class Host:
    """An enforcer with its choice made, as the guard uses it."""

    def __init__(self, asked: Asked = "auto", *, suffix: str = "") -> None:
        self.enforcer = Enforcer(HostTools(), asked, suffix, prefer_nft=False)

    async def enforce(self, *policies: Policy) -> Outcome:
        choice = await self.enforcer.choose()
        assert isinstance(choice, FilterChoice)
        outcome = await self.enforcer.enforce(choice, policies)
        assert (outcome.failures, outcome.lacking) == ((), ())
        return outcome

    async def obstacles(self, *policies: Policy) -> list[str]:
        """What is to be done about what drops our packets."""
        await self.enforce(*policies)
        return [obstacle.do for obstacle in await self.enforcer.obstacles(policies)]


KINDS = pytest.mark.parametrize("asked", ["nftables", "iptables"])


@KINDS
async def test_nobody_elses_rule_is_touched_and_nothing_is_left(asked: Asked) -> None:
    sh(OTHERS)
    before, others = everything(), foreign()
    host = Host(asked)
    assert (await host.enforce(*BOTH)).changed
    assert foreign() == others
    there = everything()
    assert (there.count("FLANNEL-FWD -s 10.42.0.0/16"), there.count("FLANNEL-FWD -s fd42::/48")) == (2, 2), there
    assert there.count(JUMP) == 2, there
    assert (await host.enforce(*OFF)).changed
    assert everything() == before


@KINDS
async def test_an_empty_host_is_empty_again(asked: Asked) -> None:
    host = Host(asked)
    assert (await host.enforce(*BOTH)).changed
    assert "10.0.0.1" in everything()
    assert "fd00:aa::/32" in everything()
    assert (await host.enforce(*OFF)).changed
    assert "flannel" not in everything().lower()


@KINDS
async def test_what_is_right_is_not_written_again_also_by_the_next_process(asked: Asked) -> None:
    sh(OTHERS)
    await Host(asked).enforce(*BOTH)
    before = everything()
    assert not (await Host(asked).enforce(*BOTH)).changed
    assert everything() == before


@pytest.mark.parametrize("tools", ["iptables-nft ip6tables-nft", "iptables-legacy ip6tables-legacy"])
@KINDS
async def test_what_flannel_left_goes_once_ours_is_in_force(asked: Asked, tools: str) -> None:
    sh(OTHERS)
    others = foreign()
    iptables, ip6tables = tools.split()
    sh(FLANNELS_IPTABLES.format(iptables=iptables, ip6tables=ip6tables))
    host = Host(asked)
    assert (await host.enforce(*BOTH)).flannels
    assert not (await host.enforce(*BOTH)).flannels
    sh(FLANNELS_NFT)
    assert (await host.enforce(*BOTH)).flannels
    assert foreign() == others
    there = everything()
    assert "flannel-ipv" not in there
    places = [there.count(":FLANNEL-POSTRTG"), there.count("table ip flanneld-py {"), there.count(":FLANNEL-FWD")]
    assert places == ([0, 1, 4] if asked == "nftables" else [2, 0, 4])
    assert there.count("-A FLANNEL-POSTRTG") == (0 if asked == "nftables" else 14), "its rules are ours now"


class Spoiler(HostTools):
    """Tools that are asked for one impossible thing at the end of every transaction: all of it is refused."""

    async def run(self, *command: str, stdin: str = "") -> str:
        if command[0] == "nft":
            stdin = stdin and stdin + "delete table ip nothing\n"
        return await super().run(*command, stdin=stdin.replace("COMMIT", "-D FORWARD -i nothing -j DROP\nCOMMIT"))


@KINDS
async def test_what_cannot_be_done_leaves_the_old_rules_in_force(asked: Asked) -> None:
    sh(OTHERS)
    await Host(asked).enforce(V4)
    before = everything()
    spoilt = Enforcer(Spoiler(), asked, "", prefer_nft=False)
    choice = await spoilt.choose()
    assert choice is not None
    outcome = await spoilt.enforce(choice, [replace(V4, subnet=ip_network("10.42.9.0/24"))])
    assert len(outcome.failures) == 1
    assert not outcome.changed
    assert everything() == before


async def test_a_masquerade_that_fails_does_not_keep_packets_from_being_forwarded() -> None:
    """Nor is what masqueraded before removed."""
    sh(OTHERS)
    await Host("iptables").enforce(V4)
    sh("iptables -F FORWARD")
    spoilt = Enforcer(NftSpoiler(), "nftables", "", prefer_nft=False)
    choice = await spoilt.choose()
    assert choice is not None
    outcome = await spoilt.enforce(choice, [V4])
    assert len(outcome.failures) == 1
    there = sh("iptables-save")
    assert '-A FORWARD -m comment --comment "flanneld-py forward" -j FLANNEL-FWD' in there
    assert "-A FLANNEL-POSTRTG -s 10.42.5.0/24" in there


class NftSpoiler(HostTools):
    """Tools of which nft can change nothing."""

    async def run(self, *command: str, stdin: str = "") -> str:
        return await super().run(*command, stdin=stdin + "delete table ip nothing\n" if "-f" in command else stdin)


async def test_two_networks_do_not_know_of_each_other() -> None:
    sh(OTHERS)
    first, second = Host("iptables"), Host("nftables", suffix="-7")
    other = replace(V4, network=ip_network("10.77.0.0/16"), subnet=ip_network("10.77.1.0/24"))
    await first.enforce(V4)
    alone = everything()
    await second.enforce(other)
    assert not (await first.enforce(V4)).changed
    assert not (await second.enforce(other)).changed
    await second.enforce(replace(other, masquerade=False, forward=False))
    assert everything() == alone


async def test_auto_stays_where_it_was_when_iptables_comes_later() -> None:
    await Host().enforce(V4)
    sh("iptables -P FORWARD DROP")
    choice = await Host().enforcer.choose()
    assert choice == FilterChoice("nftables", "our rules are there already")


async def test_what_drops_and_is_not_ours_is_named_until_somebody_acts() -> None:
    sh("nft add table inet firewalld; nft add table inet mine")
    for table in ("firewalld", "mine"):
        sh(f"nft add chain inet {table} way '{{ type filter hook forward priority 10; policy drop; }}'")
    host = Host("nftables")
    obstacles = await host.obstacles(V4)
    assert obstacles == [
        "nft insert rule inet mine way ip saddr 10.42.0.0/16 accept;"
        " nft insert rule inet mine way ip daddr 10.42.0.0/16 accept",
        "firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16 && firewall-cmd --reload",
    ]
    sh(obstacles[0])
    sh("nft add rule inet firewalld way ip saddr 10.42.0.0/16 accept")
    assert await host.obstacles(V4) == []


@KINDS
async def test_a_family_that_was_turned_off_leaves_nothing(asked: Asked) -> None:
    sh(OTHERS)
    await Host(asked).enforce(*BOTH)
    assert (await Host(asked).enforce(V4)).changed
    there = everything()
    assert "fd42:" not in there, there
    assert "10.42.0.0/16" in there
    assert not (await Host(asked).enforce(V4)).changed


async def test_nftables_that_bears_the_name_of_an_iptables_table_is_not_written_to() -> None:
    sh("nft 'table ip filter { chain forward { type filter hook forward priority 0; policy drop; }; }'")
    before = sh("nft list table ip filter")
    obstacles = await Host().obstacles(V4)
    assert sh("nft list table ip filter") == before
    assert "flanneld-py" in sh("nft list tables")
    assert [advice.split(";")[0] for advice in obstacles] == [
        "nft insert rule ip filter forward ip saddr 10.42.0.0/16 accept"
    ]


@pytest.mark.parametrize("tools", ["iptables-nft ip6tables-nft", "iptables-legacy ip6tables-legacy"])
async def test_removing_ours_leaves_flannels_and_everybody_elses(tools: str) -> None:
    sh(OTHERS)
    iptables, ip6tables = tools.split()
    theirs = FLANNELS_IPTABLES.format(iptables=iptables, ip6tables=ip6tables) + FLANNELS_NFT
    sh(theirs)
    before = everything()
    assert not (await Host().enforcer.remove()).changed
    assert everything() == before


@KINDS
async def test_all_of_ours_goes_whatever_networks_it_is(asked: Asked) -> None:
    sh(OTHERS)
    before = everything()
    await Host(asked).enforce(*BOTH)
    other = replace(V4, network=ip_network("10.77.0.0/16"), subnet=ip_network("10.77.1.0/24"))
    await Host(asked, suffix="-7").enforce(other)
    outcome = await Host().enforcer.remove()
    assert (outcome.changed, outcome.failures) == (True, ())
    assert everything() == before


class WithoutNft(HostTools):
    """A host that has iptables alone."""

    def __init__(self, *, legacy: bool = False) -> None:
        super().__init__()
        self._legacy = legacy

    def has(self, name: str) -> bool:
        there = not self._legacy or "legacy" in name or not name.startswith(("iptables", "ip6tables"))
        return name != "nft" and there and super().has(name)


async def test_without_nft_all_of_ours_goes_as_well() -> None:
    sh(OTHERS)
    before = everything()
    host = Host()
    host.enforcer = Enforcer(WithoutNft(), "auto", "", prefer_nft=False)
    await host.enforce(*BOTH)
    await host.enforce(V4)
    assert "fd42:" not in everything()
    await host.enforcer.remove()
    assert everything() == before


def arrives(source: str, target: str, port: int) -> bool:
    """Whether a datagram to this host gets through its packet filter."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as receiver, socket.socket(family, socket.SOCK_DGRAM) as sender:
        receiver.bind((target, port))
        receiver.setblocking(False)
        sender.bind((source, 0))
        sender.sendto(b"x", (target, port))  # Over loopback it has arrived, or never will, when this returns.
        try:
            return receiver.recv(1) == b"x"
        except BlockingIOError:
            return False


@pytest.mark.parametrize("tools", ["nftables", "iptables", "iptables without nft", "iptables-legacy without nft"])
async def test_no_container_speaks_to_a_hosts_tunnel(tools: str) -> None:
    """Its host would masquerade that, so that it came from the address of a peer."""
    sh("ip link set lo up")
    for address in (
        "10.42.5.2/24",
        "10.42.5.3/24",
        "192.0.2.1/24",
        "fd42:0:0:5::2/64",
        "fd42:0:0:5::3/64",
        "fd00::1/64",
    ):
        sh(f"ip address add {address} dev lo {'nodad' if ':' in address else ''}")
    host = Host("nftables" if tools == "nftables" else "iptables")
    if tools.endswith("without nft"):
        host.enforcer = Enforcer(WithoutNft(legacy="legacy" in tools), "auto", "", prefer_nft=False)
    both = [replace(policy, masquerade=False, port=8472) for policy in BOTH]  # On loopback it comes before our look.
    await host.enforce(*both)
    assert not (await host.enforce(*both)).changed
    for container, other, own in (
        ("10.42.5.2", "10.42.5.3", "192.0.2.1"),
        ("fd42:0:0:5::2", "fd42:0:0:5::3", "fd00::1"),
    ):
        assert not arrives(container, own, 8472)
        assert arrives(container, own, 8473)
        assert arrives(container, other, 8472), "a tunnel between containers is their own affair"
        assert arrives(own, own, 8472), "as a host's does"
    await host.enforcer.remove()
    assert "flannel" not in everything().lower()


DOCKER_28 = """
for i in {0}; do
  $i -P FORWARD DROP
  $i -t raw -A PREROUTING -p udp --dport 53 -j CT --notrack
  $i -t raw -A PREROUTING -d 127.0.0.1 ! -i lo -p tcp --dport 80 -j DROP
  $i -t raw -A PREROUTING -d 10.42.5.2 ! -i docker0 -j DROP
done
"""
JUMP = '-A PREROUTING -m comment --comment "flanneld-py raw" -j FLANNEL-RAW'
LABEL = '-m comment --comment "flanneld-py raw"'


def prerouting(iptables: str) -> list[str]:
    return sh(f"{iptables} -t raw -S PREROUTING").splitlines()[1:]


@pytest.mark.parametrize("iptables", ["iptables-nft", "iptables-legacy"])
@KINDS
async def test_in_raw_ours_is_before_what_drops_and_behind_all_else(asked: Asked, iptables: str) -> None:
    sh(DOCKER_28.format(iptables))
    others, host = prerouting(iptables), Host(asked)
    await host.enforce(*BOTH)
    assert prerouting(iptables) == [*others[:2], JUMP, *others[2:]]
    assert sh(f"{iptables} -t raw -S FLANNEL-RAW").splitlines()[1:] == [
        f"-A FLANNEL-RAW ! -d 10.42.5.0/24 {LABEL} -j RETURN",
        f"-A FLANNEL-RAW -d 10.42.5.0/24 -i flannel.1 {LABEL} -j ACCEPT",
        f"-A FLANNEL-RAW -s 10.0.0.1/32 -d 10.42.5.0/24 {LABEL} -j ACCEPT",
        *(
            f"-A FLANNEL-RAW -s {sender} -d 10.42.5.0/24 -i eth0 {LABEL} -j ACCEPT"
            for sender in ("10.42.0.0/16", "192.0.2.7/32", "192.0.2.8/32")
        ),
    ]
    assert not (await Host(asked).enforce(*BOTH)).changed
    sh(f"{iptables} -t raw -F; {iptables} -t raw -A PREROUTING -d 10.42.5.2 ! -i docker0 -j DROP")
    assert (await host.enforce(*BOTH)).changed
    assert prerouting(iptables) == [JUMP, others[2]]
    sh(f"{iptables} -t raw -F PREROUTING; " + DOCKER_28.format(iptables))
    await host.enforce(*OFF)
    assert (prerouting(iptables), "FLANNEL" in everything()) == (others, False)


@KINDS
async def test_raw_is_made_in_nft_not_in_legacy_and_goes_with_us(asked: Asked) -> None:
    tables = "(iptables-nft-save; ip6tables-nft-save; iptables-legacy-save; ip6tables-legacy-save)"
    sh("for i in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $i -A FORWARD -i eth7; done")
    before = everything()
    await Host(asked).enforce(*BOTH)
    there = sh(tables)
    assert (there.count("*raw"), there.count(JUMP)) == (2, 2), there
    await Host(asked).enforce(V4)
    assert sh(tables).count("*raw") == 1
    await Host().enforcer.remove()
    assert "raw" not in everything()
    assert asked == "iptables" or everything() == before


async def test_our_raw_table_alone_does_not_say_that_the_host_uses_iptables() -> None:
    sh("iptables -A FORWARD -i eth7")
    await Host().enforce(V4)
    sh("for t in filter nat; do nft delete table ip $t || :; done")
    assert JUMP in sh("iptables-save")
    choice = await Host().enforcer.choose()
    assert choice == FilterChoice("nftables", "the host has no iptables rules")
    assert (await Host().enforcer.remove()).changed
    assert everything() == ""


async def test_another_device_of_ours_leaves_nothing_in_raw() -> None:
    sh(DOCKER_28.format("iptables-nft"))
    await Host("nftables", suffix="-7").enforce(replace(V4, device="flannel.7"))
    other = replace(V4, network=ip_network("10.77.0.0/16"), subnet=ip_network("10.77.1.0/24"), device="flannel.8")
    await Host("nftables", suffix="-8").enforce(other)
    await Host("nftables").enforce(V4)
    there = sh("iptables-save -t raw")
    assert "FLANNEL-RAW-7" not in there, "it was for our subnet"
    assert "-A FLANNEL-RAW-8 " in there, "another network's"


class WithoutRaw(HostTools):
    """Tools of which none can change the table raw."""

    async def run(self, *command: str, stdin: str = "") -> str:
        return await super().run(*command, stdin=stdin.replace("*raw", "*no-such-table"))


async def test_a_raw_table_that_cannot_be_written_is_told_and_all_else_is_done() -> None:
    sh(OTHERS + FLANNELS_NFT)
    host = Enforcer(WithoutRaw(), "iptables", "", prefer_nft=False)
    choice = await host.choose()
    assert choice is not None
    outcome = await host.enforce(choice, [V4])
    assert (outcome.changed, outcome.failures) == (True, ())
    assert [reason.partition("`")[2].split()[0] for reason in outcome.lacking] == ["iptables-restore"]
    there = everything()
    assert "-A FLANNEL-FWD" in there
    assert "-A FLANNEL-POSTRTG" in there
    assert "flannel-ipv4" not in there


DOCKER_29 = """
nft -f - <<'END'
table {0} docker-bridges {{
  chain raw-PREROUTING {{ type filter hook prerouting priority raw; }}
  chain filter-forward-in__docker0 {{
    ct state established,related counter accept
    {2}
    iifname docker0 counter accept comment "ICC"
    counter drop comment "UNPUBLISHED PORT DROP"
  }}
}}
add rule {0} docker-bridges raw-PREROUTING {0} daddr {1} iifname != docker0 counter drop comment "DROP DIRECT ACCESS"
END
"""
ACCEPTS_MARK = 'meta mark & 0x100000 == 0x100000 counter accept comment "ALLOW FW MARK"'


@KINDS
async def test_where_docker_has_a_table_of_its_own_our_packets_are_marked_and_it_is_said_what_docker_lacks(
    asked: Asked,
) -> None:
    sh("iptables -A FORWARD -i eth7; ip6tables -A FORWARD -i eth7")
    sh(DOCKER_29.format("ip", "10.42.5.2", "") + DOCKER_29.format("ip6", "fd42:0:0:5::2", ACCEPTS_MARK))
    host = Host(asked)
    obstacles = await host.obstacles(*BOTH)
    assert len(obstacles) == 1
    assert '"allow-direct-routing": true and "bridge-accept-fwmark": "0x100000/0x100000"' in obstacles[0]
    marks = sh("nft list chain ip flanneld-py docker-mark; nft list chain ip6 flanneld-py docker-mark")
    assert marks.count('iifname "flannel.1" ip daddr 10.42.5.0/24') == 1, marks
    assert marks.count('iifname "eth0" ip6 saddr 2001:db8::7 ip6 daddr fd42:0:0:5::/64') == 1
    assert marks.count("drop") == 2
    assert not (await Host(asked).enforce(*BOTH)).changed
    sh("nft flush chain ip docker-bridges raw-PREROUTING; nft flush chain ip6 docker-bridges raw-PREROUTING")
    assert len(await host.obstacles(*BOTH)) == 1, "it still does not know the mark"
    sh("nft delete table ip docker-bridges; " + DOCKER_29.format("ip", "172.18.0.2", ACCEPTS_MARK))
    assert await host.obstacles(*BOTH) == []
    choice = await Host().enforcer.choose()
    assert choice is not None
    assert choice.kind == asked, "a chain of marks alone does not say that we masquerade in nftables"
    sh("nft delete table ip docker-bridges; nft delete table ip6 docker-bridges")
    assert (await host.enforce(*BOTH)).changed
    assert "chain docker-mark" not in everything()


@KINDS
async def test_who_is_no_way_to_others_drops_in_nftables_or_in_iptables(asked: Asked) -> None:
    host = Host(asked)
    await host.enforce(replace(V4, own_only=True))
    there = everything()
    in_iptables = there.count('-A FLANNEL-FWD -i eth0 -o flannel.1 -m comment --comment "flanneld-py forward" -j DROP')
    in_nft = there.count('iifname "eth0" oifname "flannel.1" drop')
    assert (in_iptables, in_nft) == ((1, 0) if asked == "iptables" else (0, 1)), there
    assert not (await Host(asked).enforce(replace(V4, own_only=True))).changed
    await host.enforce(V4)
    assert "oifname" not in sh("nft list table ip flanneld-py || :")


@pytest.mark.parametrize("asked", ["nftables", "iptables"])
async def test_rules_of_a_former_backend_go_and_a_neighbours_stay(asked: Asked) -> None:
    """In both families; the neighbour masquerades nothing that goes to our network, which is among its rules then."""
    neighbours = Policy(
        ip_network("10.43.0.0/16"), ip_network("10.43.5.0/24"), True, excluded=(V4.network,), device="flannel.2"
    )
    pairs = [(policy.network, policy.subnet) for policy in BOTH]
    for suffix, policies in (("-2", (neighbours,)), ("-7", BOTH), ("", BOTH)):
        enforcer = Enforcer(HostTools(), asked, suffix, prefer_nft=False)
        choice = await enforcer.choose()
        assert choice is not None
        await enforcer.enforce(choice, policies)
    before = everything()
    assert await enforcer.remove_former(pairs, {"-7"}) == Outcome(changed=False), "its agent lives"
    assert await enforcer.remove_former(pairs, set()) == Outcome(changed=True)
    there = everything()
    assert "-7" in before
    assert not [line for line in there.splitlines() if "FWD-7" in line or "POSTRTG-7" in line or "py-7" in line]
    assert [line for line in there.splitlines() if "-2" in line] != []
    assert await enforcer.remove_former(pairs, set()) == Outcome(changed=False)
    assert choice is not None
    assert await enforcer.enforce(choice, BOTH) == Outcome(changed=False)
