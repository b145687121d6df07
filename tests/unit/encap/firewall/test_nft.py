from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from flanneld_py.encap.firewall.nft import read_survey, table_text
from flanneld_py.encap.firewall.policy import Policy, rules
from flanneld_py.encap.firewall.ruleset import Base

LISTED = """table ip flanneld-py {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
	}
}
table ip empty {
}
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
	chain DOCKER-USER {
	}
}
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
	}
}
table netdev early {
	chain one {
		type filter hook ingress device "eth0" priority filter; policy accept;
	}
	chain some {
		type filter hook ingress devices = { "eth0", eth1 } priority filter - 5; policy drop;
	}
}
"""


def test_a_table_is_written_as_nft_lists_it() -> None:
    policy = Policy(
        ip_network("fd42::/48"),
        ip_network("fd42:0:0:5::/64"),
        masquerade=True,
        random_fully=False,
        excluded=(ip_network("fd00::1/128"),),
    )
    assert table_text(replace(rules(policy), raw=()), "flanneld-py-7").splitlines() == [
        "table ip6 flanneld-py-7 {",
        "\tchain postrouting {",
        "\t\ttype nat hook postrouting priority srcnat; policy accept;",
        "\t\tmeta mark & 0x00004000 == 0x00004000 return",
        "\t\tip6 saddr fd42:0:0:5::/64 ip6 daddr fd42::/48 return",
        "\t\tip6 saddr fd42::/48 ip6 daddr fd42:0:0:5::/64 return",
        "\t\tip6 saddr != fd42::/48 ip6 daddr fd42:0:0:5::/64 return",
        "\t\tip6 saddr fd42::/48 ip6 daddr fd00::1 return",
        "\t\tip6 saddr fd42::/48 ip6 daddr != ff00::/8 masquerade",
        "\t\tip6 saddr != fd42::/48 ip6 daddr fd42::/48 masquerade",
        "\t}",
        "}",
    ]


def test_a_survey_tells_tables_and_who_decides_on_forwarded_packets() -> None:
    survey = read_survey(LISTED)
    assert survey.tables == {("ip", "flanneld-py"), ("ip", "empty"), ("ip", "filter"), ("inet", "firewalld")} | {
        ("netdev", "early")
    }
    assert survey.bases == {
        ("ip", "filter"): (Base("FORWARD", "forward", drops=True),),
        ("inet", "firewalld"): (Base("filter_FORWARD", "forward", drops=False),),
        ("netdev", "early"): (
            Base("one", "ingress", False, frozenset(("eth0",))),
            Base("some", "ingress", True, frozenset(("eth0", "eth1"))),
        ),
    }
    assert survey.iptables(4) == {"filter"}
    assert survey.iptables(6) == set()


def test_what_is_dropped_and_what_is_marked_stand_in_chains_of_their_own() -> None:
    policy = Policy(
        ip_network("10.42.0.0/16"),
        ip_network("10.42.5.0/24"),
        device="flannel.1",
        underlay="eth0",
        direct=frozenset((ip_address("192.0.2.7"),)),
        own_only=True,
    )
    mark = "meta mark set meta mark | 0x00100000 accept"
    assert table_text(rules(policy), "flanneld-py").splitlines() == [
        "table ip flanneld-py {",
        "\tchain forward {",
        "\t\ttype filter hook forward priority filter; policy accept;",
        '\t\tiifname "eth0" oifname "flannel.1" drop',
        '\t\tiifname "eth0" oifname "eth0" ip daddr 10.42.0.0/16 drop',
        "\t}",
        "\tchain docker-mark {",
        "\t\ttype filter hook prerouting priority -350; policy accept;",
        "\t\tip daddr != 10.42.5.0/24 return",
        f'\t\tiifname "flannel.1" ip daddr 10.42.5.0/24 {mark}',
        f'\t\tiifname "eth0" ip saddr 10.42.0.0/16 ip daddr 10.42.5.0/24 {mark}',
        f'\t\tiifname "eth0" ip saddr 192.0.2.7 ip daddr 10.42.5.0/24 {mark}',
        '\t\tiifname "eth0" ip daddr 10.42.5.0/24 fib daddr type != local drop',
        "\t}",
        "}",
    ]
    assert table_text(replace(rules(policy), closed=(), raw=()), "flanneld-py") == ""
