from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest

from tests.lab.__main__ import main
from tests.lab.topology import Plan, mac


def test_addresses_follow_from_the_hosts_number() -> None:
    plan = Plan()
    assert plan.gateway == IPv4Address("172.30.0.1")
    assert [str(plan.host_address(number)) for number in (1, 2, 12)] == ["172.30.0.11", "172.30.0.12", "172.30.0.22"]
    assert plan.manual_subnet(3) == IPv4Interface("10.42.3.1/24")
    assert mac(IPv4Address("172.30.0.11")) == "02:00:ac:1e:00:0b"


def test_a_small_network_gets_small_subnets() -> None:
    assert Plan(network=IPv4Network("10.42.8.0/24")).manual_subnet(1) == IPv4Interface("10.42.8.65/26")


def test_the_config_carries_backend_options_and_further_keys() -> None:
    plan = Plan(backend_options={"VNI": 7}, config={"SubnetLen": 26})
    assert json.loads(plan.network_config()) == {
        "Network": "10.42.0.0/16",
        "Backend": {"Type": "vxlan", "VNI": 7},
        "SubnetLen": 26,
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"hosts": 0}, "0 hosts"),
        ({"hosts": 245}, "has room for 1 to 244"),
        ({"containers": 201}, "201 containers"),
        ({"network": IPv4Network("172.30.0.0/16")}, "overlaps"),
        ({"network": IPv4Network("10.0.0.0/24"), "hosts": 4}, "has only 3 subnets"),
        ({"network": IPv4Network("10.0.0.0/30")}, "too small"),
        ({"overlay": "manual", "backend": "host-gw"}, "only vxlan can"),
    ],
)
def test_a_plan_that_cannot_be_built_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Plan(**arguments)


def test_the_command_answers_a_wrong_argument_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hosts", "0"]) == 2
    assert main(["--seconds", "-1"]) == 2
    assert main(["--json", "/nowhere/lab.json"]) == 2
    said = capsys.readouterr().err
    assert "0 hosts" in said
    assert "--seconds -1" in said
    assert "no directory /nowhere" in said
    with pytest.raises(SystemExit) as exit_:
        main(["--network", "10.42.0.0/33"])
    assert exit_.value.code == 2
