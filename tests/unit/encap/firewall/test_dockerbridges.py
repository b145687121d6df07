"""What Docker's own nftables table says about how Docker was set; the tables are as nft lists those of Docker 29."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from flanneld_py.encap.firewall.dockerbridges import SETTINGS, advice

SUBNET = ip_network("10.42.5.0/24")
TABLE = """table ip docker-bridges {
	chain raw-PREROUTING {
		type filter hook prerouting priority raw; policy accept;
%s	}

	chain filter-forward-in__docker0 {
		ct state established,related counter packets 0 bytes 0 accept
%s		iifname "docker0" counter packets 0 bytes 0 accept comment "ICC"
		ip daddr 10.42.5.2 tcp dport 80 counter packets 0 bytes 0 accept
		counter packets 0 bytes 0 drop comment "UNPUBLISHED PORT DROP"
	}
}
"""
DROP = '\t\tip daddr %s iifname != "docker0" counter packets 0 bytes 0 drop comment "DROP DIRECT ACCESS"\n'
MARK = '\t\tmeta mark & %s == %s counter packets 0 bytes 0 accept comment "ALLOW FW MARK"\n'
OURS = MARK % ("0x00100000", "0x00100000")


@pytest.mark.parametrize(
    ("drops", "marks"),
    [
        ("", ""),
        (DROP % "10.42.5.2", OURS),
        (DROP % "10.42.5.2", ""),
        ("", MARK % ("0x00000001", "0x00000001")),
        ("", MARK % ("0x01000000", "0x01000000")),
    ],
)
def test_what_is_not_set_is_named(drops: str, marks: str) -> None:
    assert SETTINGS in advice(TABLE % (drops, marks), SUBNET)


@pytest.mark.parametrize("mark", [OURS, OURS.replace("&", "and"), OURS.replace("0x00100000", "0x100000")])
def test_nothing_is_said_where_all_is_set(mark: str) -> None:
    assert advice(TABLE % ("", mark), SUBNET) == ""
    assert advice(TABLE % (DROP % "172.18.0.2", mark), SUBNET) == "", "of another network"


def test_a_docker_without_bridges_and_the_other_family_are_no_matter() -> None:
    assert advice("table ip docker-bridges {\n}\n", SUBNET) == ""
    assert advice(TABLE % (DROP % "10.42.5.2", OURS), ip_network("fd42:0:0:5::/64")) == ""
    six = (TABLE % (DROP % "fd42:0:0:5::2", OURS)).replace("ip daddr", "ip6 daddr")
    assert SETTINGS in advice(six, ip_network("fd42:0:0:5::/64"))
