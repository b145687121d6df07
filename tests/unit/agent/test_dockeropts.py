"""Docker's options are those that flannel's mk-docker-opts.sh writes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from flanneld_py.agent.dockeropts import OptsError, Wish, parse, render, write
from flanneld_py.agent.subnetfile import SubnetFile

SUBNETS = SubnetFile(((IPv4Network("10.42.0.0/16"), IPv4Network("10.42.7.0/24")),), mtu=1450, ipmasq=True)
INDIVIDUAL = 'DOCKER_OPT_BIP="--bip=10.42.7.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=false"\nDOCKER_OPT_MTU="--mtu=1450"\n'
COMBINED = 'DOCKER_OPTS=" --bip=10.42.7.1/24 --ip-masq=false --mtu=1450"\n'
NO_ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], INDIVIDUAL + COMBINED),
        (["-i", "-c"], INDIVIDUAL + COMBINED),
        (["-i"], INDIVIDUAL),
        (["-c"], COMBINED),
        (["-c", "-k", "DOCKER_NETWORK_OPTIONS"], COMBINED.replace("DOCKER_OPTS", "DOCKER_NETWORK_OPTIONS")),
        (["-c", "-m"], 'DOCKER_OPTS=" --bip=10.42.7.1/24 --mtu=1450"\n'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_output_is_that_of_flannels_script(arguments: list[str], text: str) -> None:
    assert render(parse(arguments), SUBNETS, {}) == text


def test_docker_masquerades_if_we_do_not() -> None:
    assert "--ip-masq=true" in render(Wish(), replace(SUBNETS, ipmasq=False), {})


def test_what_the_combined_variable_holds_comes_first_and_other_options_are_kept() -> None:
    environment = {"DOCKER_OPTS": "--debug", "DOCKER_OPT_LOG": "--log-level=warn", "HOME": "/root"}
    text = render(Wish(individual=False), SUBNETS, environment)
    assert text == ('DOCKER_OPTS="--debug  --bip=10.42.7.1/24 --ip-masq=false --log-level=warn --mtu=1450"\n')


@pytest.mark.parametrize("arguments", [["-h"], ["-?"], ["-x"], ["more"], ["-f"]], ids=" ".join)
def test_a_wrong_command_line_gets_the_usage(arguments: list[str]) -> None:
    with pytest.raises(OptsError, match="usage: "):
        parse(arguments)


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    wish = given(tmp_path)
    write(wish, {}, routes(tmp_path, NO_ROUTES))
    assert wish.output.read_text() == INDIVIDUAL + COMBINED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docker.env", "routes", "subnet.env"]


def test_without_a_subnet_file_nothing_is_written(tmp_path: Path) -> None:
    wish = Wish(tmp_path / "subnet.env", tmp_path / "docker.env")
    with pytest.raises(OptsError, match=r"subnet\.env.*has flanneld-py a lease yet"):
        write(wish, {}, routes(tmp_path, NO_ROUTES))
    assert not wish.output.exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("FLANNEL_SUBNET=10.99.7.1/24", "10.99.7.0/24 is not inside FLANNEL_NETWORK 10.42.0.0/16"),
        ("FLANNEL_SUBNET=10.42.7", "FLANNEL_SUBNET=10.42.7: expected an IPv4 network"),
        ("FLANNEL_MTU=", "FLANNEL_MTU=: expected 1 to 65535 bytes"),
        ("FLANNEL_IPMASQ=yes", "FLANNEL_IPMASQ=yes: expected true or false"),
    ],
    ids=["of another network", "no subnet", "no MTU", "neither true nor false"],
)
def test_a_subnet_file_that_cannot_be_right_is_named_and_nothing_is_written(
    tmp_path: Path, line: str, why: str
) -> None:
    wish = given(tmp_path)
    with wish.subnet_file.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(OptsError, match=rf"subnet\.env: .*{why}"):
        write(wish, {}, routes(tmp_path, NO_ROUTES))
    assert not wish.output.exists()


def test_ipv6_alone_is_nothing_for_dockers_bridge(tmp_path: Path) -> None:
    wish = given(tmp_path)
    six = (IPv6Network("fd42::/48"), IPv6Network("fd42::/64"))
    wish.subnet_file.write_text(replace(SUBNETS, families=(six,)).text())
    with pytest.raises(OptsError, match="no FLANNEL_SUBNET is in the subnet file"):
        write(wish, {}, routes(tmp_path, NO_ROUTES))
    assert not wish.output.exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    wish = Wish(given(tmp_path).subnet_file, tmp_path / "absent/docker.env")
    with pytest.raises(OptsError, match=r"cannot write .*absent/docker\.env"):
        write(wish, {}, routes(tmp_path, NO_ROUTES))


@pytest.mark.parametrize(
    ("flags", "refused"), [("0003", True), ("0001", False)], ids=["by way of a gateway", "our bridge's own"]
)
def test_a_route_that_leads_elsewhere_is_told_after_writing(tmp_path: Path, flags: str, refused: bool) -> None:
    wish = given(tmp_path)
    there = routes(tmp_path, NO_ROUTES + f"eth0\t00072A0A\t0100000A\t{flags}\t0\t0\t0\t00FFFFFF\t0\t0\t0\n")
    if refused:
        with pytest.raises(OptsError, match=r"10\.42\.7\.0/24 leads to another host"):
            write(wish, {}, there)
    else:
        write(wish, {}, there)
    assert wish.output.exists()


def given(folder: Path) -> Wish:
    file = folder / "subnet.env"
    file.write_text(SUBNETS.text())
    return Wish(file, folder / "docker.env")


def routes(folder: Path, text: str) -> Path:
    file = folder / "routes"
    file.write_text(text)
    return file
