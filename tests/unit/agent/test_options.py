from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from flanneld_py.agent.flags import FLAGS
from flanneld_py.agent.options import MAX_WORKERS, Exit, Options, default_workers, parse
from flanneld_py.agent.values import UsageError
from flanneld_py.encap.datapath.control import protocol


def options(*arguments: str, **environment: str) -> Options:
    return parse(arguments, environment, lambda: "flanneld-py 1.2.3")


def test_defaults_are_flannels() -> None:
    given = options()
    assert given.endpoints == ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    assert given.prefix == "/coreos.com/network"
    assert given.subnet_file == Path("/run/flannel/subnet.env")
    assert given.margin == 3600
    assert given.healthz is None
    assert (given.interfaces, given.public_ip, given.client) == ((), None, "grpc")


def test_the_number_of_workers_is_given_or_what_the_host_can_spare() -> None:
    assert options().datapath_workers is None
    assert options("--datapath-workers", "32").datapath_workers == 32
    assert options(FLANNELD_DATAPATH_WORKERS="2").datapath_workers == 2
    assert [default_workers(cores) for cores in (1, 2, 7, 8, 12, 16, 128)] == [1, 1, 1, 2, 3, 4, 4]
    assert MAX_WORKERS == protocol.MAX_WORKERS


def test_how_long_a_lease_lasts_and_when_its_end_is_warned_of() -> None:
    assert (options().lease_ttl, options().subnet_len) == (86_400, None)
    given = options("--lease-ttl", "10", "--subnet-len=26")
    assert (given.lease_ttl, given.margin, given.subnet_len) == (600, 300, 26)
    given = options(FLANNELD_LEASE_TTL="60", FLANNELD_SUBNET_LEASE_RENEW_MARGIN="59")
    assert (given.lease_ttl, given.margin) == (3600, 59 * 60)


def test_one_dash_or_two_value_apart_or_joined() -> None:
    for arguments in (["-etcd-prefix", "/p"], ["--etcd-prefix=/p"], ["-etcd-prefix=/p"], ["--etcd-prefix", "/p"]):
        assert options(*arguments).prefix == "/p"


def test_the_environment_counts_where_the_flag_is_not_given() -> None:
    assert options(FLANNELD_ETCD_PREFIX="/e").prefix == "/e"
    assert options("--etcd-prefix", "/f", FLANNELD_ETCD_PREFIX="/e").prefix == "/f"
    assert options(FLANNELD_ETCD_PREFIX="").prefix == "/coreos.com/network"
    assert options(FLANNELD_IFACE="eth1").interfaces == ("eth1",)


def test_repeatable_flags_and_the_short_alias() -> None:
    given = options("--iface", "eth0", "-iface=10.0.0.1", "--etcd", "http://10.0.0.5:2379, http://10.0.0.6:2379/")
    assert given.interfaces == ("eth0", "10.0.0.1")
    assert given.endpoints == ("http://10.0.0.5:2379", "http://10.0.0.6:2379")


def test_addresses_and_health() -> None:
    given = options("--public-ip", "198.51.100.7", "--iface-can-reach", "10.0.0.1", "--healthz-port=8081")
    assert (given.public_ip, given.can_reach) == (IPv4Address("198.51.100.7"), IPv4Address("10.0.0.1"))
    assert given.healthz == ("0.0.0.0", 8081)
    given = options("--public-ipv6", "2001:db8::7", "--iface-can-reach", "2001:db8::1")
    assert (given.public_ip6, given.can_reach) == (IPv6Address("2001:db8::7"), IPv6Address("2001:db8::1"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--nonsense"], "no flag --nonsense"),
        (["positional"], "unexpected argument 'positional'"),
        (["--etcd-prefix"], "needs a value"),
        (["--ip-masq=perhaps"], "--ip-masq is 'perhaps'; it must be true or false"),
        (["--subnet-lease-renew-margin", "0"], "from 1 to 1439"),
        (["--subnet-lease-renew-margin", "1440"], "from 1 to 1439"),
        (["--subnet-lease-renew-margin", "1h"], "from 1 to 1439"),
        (["--subnet-lease-renew-margin", "60", "--lease-ttl=60"], "from 1 to 59"),
        (["--lease-ttl", "9"], "--lease-ttl is '9'; it must be a number from 10"),
        (["--subnet-len", "31"], "--subnet-len is '31'; it must be a number from 1 to 30"),
        (["--healthz-port", "65536"], "--healthz-port"),
        (["--public-ip", "10.0.0"], "--public-ip is '10.0.0'"),
        (["--public-ip", "224.0.0.1"], "other hosts can reach"),
        (["--public-ip", "255.255.255.255"], "other hosts can reach"),
        (["--public-ip", "0.1.2.3"], "other hosts can reach"),
        (["--public-ipv6", "::ffff:10.0.0.1"], "other hosts can reach"),
        (["--public-ip", "fd00::1"], "--public-ip is 'fd00::1'; it must be an IPv4 address"),
        (["--public-ipv6", "10.0.0.1"], "--public-ipv6 is '10.0.0.1'; it must be an IPv6 address"),
        (["--public-ipv6", "fe80::1"], "other hosts can reach"),
        (["--iface-can-reach", "host"], "must be an IP address"),
        (["--iface-regex", "("], "no regular expression"),
        (["--etcd-endpoints", ""], "is empty"),
        (["--etcd-endpoints", "http://"], "must look like http://10.0.0.5:2379"),
        (["--etcd-endpoints", "unix:///run/etcd.sock"], "must look like"),
        (["--etcd-endpoints", "http://10.0.0.5:0"], "must look like"),
        (["--etcd-endpoints", "http://10.0.0.5?name=x"], "must look like"),
        (["--etcd-endpoints", "http://10.0.0.5:port"], "must look like"),
        (["--etcd-endpoints", "http://a:1,https://b:1"], "mixes http (http://a:1) and https"),
        (["--etcd-endpoints", "https://a:1,b:1"], "mixes http (http://b:1) and https"),
        (["--", "word"], "unexpected argument 'word'"),
        (["--", "--v=1"], "unexpected argument '--v=1'"),
        (["--etcd", "http://a:1", "--etcd-endpoints", "http://b:1"], "the same flag"),
        (["--etcd-cafile", "/nonexistent/ca.pem"], "--etcd-cafile: /nonexistent/ca.pem cannot be read"),
        (["--etcd-keyfile", "/etc/hostname"], "go together"),
        (["--etcd-username", "u"], "go together"),
        (["--etcd-cafile", "/etc/hostname", "--etcd", "http://a:1,https://b:1"], "mixes http"),
        (["--etcd", ""], "is empty"),
        (["--etcd-prefix", "/"], "--etcd-prefix is empty"),
        (["--subnet-file", ""], "the path of a file"),
        (["--subnet-file=/"], "the path of a file"),
        (["--healthz-ip", "localhost"], "--healthz-ip is 'localhost'"),
        (["--etcd-client", "curl"], "grpc or etcd3"),
        (["--firewall", "pf"], "auto, nftables, iptables or none"),
        (["--firewall", "none", "--ip-masq"], "leave one of them out"),
        (["--firewall", "none", "--forward-own-only"], "--forward-own-only is a forward rule"),
        (["--forward-own-only", "--iptables-forward-rules=false"], "--forward-own-only is a forward rule"),
        (["--snat-exclude", "10.0.0.1/8"], "--snat-exclude is '10.0.0.1/8'"),
        (["--datapath", "magic"], "auto, kernel or userspace"),
        (["--datapath-workers", "0"], "--datapath-workers is '0'; it must be a number from 1 to 32"),
        (["--datapath-workers", "33"], "from 1 to 32"),
        (["--datapath-workers", ""], "from 1 to 32"),
        (["--datapath-workers", "two"], "from 1 to 32"),
        (["--kube-subnet-mgr"], "not supported"),
        (["--kube-api-url", "http://k"], "not supported"),
        (["--net-config-path=/x"], "not supported"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(arguments: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(complaint)) as caught:
        options(*arguments)
    assert "\n" not in str(caught.value)


def test_kubernetes_switched_off_is_no_error() -> None:
    assert options("--kube-subnet-mgr=false").client == "grpc"


def test_a_bad_environment_variable_is_an_error_too() -> None:
    with pytest.raises(UsageError, match="--healthz-port is 'x'"):
        options(FLANNELD_HEALTHZ_PORT="x")
    with pytest.raises(UsageError, match="FLANNELD_IP_MASQ is 'x'"):
        options(FLANNELD_IP_MASQ="x")
    with pytest.raises(UsageError, match="FLANNELD_KUBE_SUBNET_MGR"):
        options(FLANNELD_KUBE_SUBNET_MGR="true")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("10.0.0.5:2379", "http://10.0.0.5:2379"),
        ("etcd.example, [2001:db8::5]:2380", "http://etcd.example:2379 http://[2001:db8::5]:2380"),
        ("http://10.0.0.5:2379/v3/", "http://10.0.0.5:2379"),
        ("https://10.0.0.5", "https://10.0.0.5:2379"),
    ],
)
def test_endpoints_as_flannel_takes_them(given: str, used: str) -> None:
    assert options("--etcd-endpoints", given).endpoints == tuple(used.split())


@pytest.mark.parametrize("flag", ["--etcd-cafile", "--etcd-certfile"])
def test_without_a_scheme_certificates_mean_tls(flag: str) -> None:
    files = [flag, "/etc/hostname"] + (["--etcd-keyfile", "/etc/hostname"] if flag == "--etcd-certfile" else [])
    assert options(*files, "--etcd", "a:1,https://b:1,c").endpoints == ("https://a:1", "https://b:1", "https://c:2379")


def test_two_dashes_alone_end_the_flags() -> None:
    assert options("--v=1", "--").verbose


def test_what_http_leaves_unprotected_is_named() -> None:
    files = ("--etcd-cafile", "/etc/hostname", "--etcd-certfile", "/etc/hostname", "--etcd-keyfile", "/etc/hostname")
    login = ("--etcd-username", "u", "--etcd-password", "hunter2")
    assert options("--etcd", "http://a").unprotected == ()
    assert options("--etcd", "https://a", *files, *login).unprotected == ()
    assert options("--etcd", "http://a", *files).unprotected == ("--etcd-cafile", "--etcd-certfile", "--etcd-keyfile")
    assert options("--etcd", "http://a", *files[:2], *login).unprotected == ("--etcd-cafile", "--etcd-password")
    assert options("--etcd", "a", *login).unprotected == ("--etcd-password",)


def test_no_secret_is_shown() -> None:
    given = options("--etcd-username", "u", "--etcd-password", "hunter2")
    assert given.password == "hunter2"
    assert "hunter2" not in repr(given)
    with pytest.raises(UsageError) as caught:
        options("--etcd-endpoints", "http://root:hunter2@10.0.0.5:2379")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError) as caught:
        options("--etcd-endpoints", "root:hunter2@10.0.0.5:2379")
    assert "hunter2" not in str(caught.value)


def test_firewall() -> None:
    given = options().firewall
    assert (given.asked, given.masquerade, given.forward, given.random_fully) == ("auto", False, True, True)
    assert (given.excluded, given.resync) == ((), 5)
    assert options("--ip-blackhole-route").blackhole
    assert not options("--ip-blackhole-route=false").blackhole
    given = options(
        *("--ip-masq", "--iptables-forward-rules=false", "--ip-masq-fully-random-disable", "--iptables-resync=0"),
        *("--snat-exclude", "192.168.0.0/16,fd00::/8", "--snat-exclude=10.0.0.1", "--firewall", "iptables"),
    ).firewall
    assert (given.asked, given.masquerade, given.forward, given.random_fully) == ("iptables", True, False, False)
    assert [str(cidr) for cidr in given.excluded] == ["192.168.0.0/16", "fd00::/8", "10.0.0.1/32"]
    assert given.resync == 0


def test_help_and_version() -> None:
    with pytest.raises(Exit, match="--etcd-endpoints"):
        options("-h")
    with pytest.raises(Exit, match=r"flanneld-py 1\.2\.3"):
        options("--version")


def test_the_readme_lists_every_flag_with_its_default_and_meaning() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    for flag in FLAGS:
        if flag.kind != "refused":
            assert f"| `--{flag.name}` | {f'`{flag.default}`' if flag.default else ''} | {flag.meaning} |" in readme
        else:
            assert f"`--{flag.name}`" in readme
