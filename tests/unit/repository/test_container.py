"""What deploy/container says agrees with the systemd unit; and its two small programs, apart from I/O."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from deploy.container.entrypoint import shared
from deploy.container.healthcheck import server

ROOT = Path(__file__).parents[3]
CONTAINER = ROOT / "deploy/container"
HEADER = "Num       RefCount Protocol Flags    Type St Inode Path\n"
UNNAMED = "0000000000000000: 00000003 00000000 00000000 0001 03 4242\n"


def allowed(pattern: str, path: Path) -> set[str]:
    """The capabilities that a file names, without CAP_."""
    found = re.findall(pattern, path.read_text(), re.MULTILINE)
    assert found, path
    return {name.removeprefix("CAP_") for name in re.findall(r"[A-Z_]+", " ".join(found))}


def test_every_way_of_starting_it_gives_what_the_unit_gives() -> None:
    unit = allowed(r"^CapabilityBoundingSet=(.*)$", ROOT / "deploy/flanneld-py.service")
    assert allowed(r"cap_add: \[(.*)\]", CONTAINER / "compose.yaml") == unit
    assert allowed(r"^AddCapability=(.*)$", CONTAINER / "flanneld-py.container") == unit
    assert allowed(r"--cap-add (\w+)", ROOT / "docs/container.md") == unit


def test_every_place_names_the_image_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    named = {
        path.name: set(re.findall(r"localhost/flanneld-py:(?:\$\{VERSION:-)?([\d.]+)", path.read_text()))
        for path in (CONTAINER / "compose.yaml", CONTAINER / "flanneld-py.container", ROOT / "docs/container.md")
    }
    assert list(named.values()) == [{version}] * 3


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("", False),
        (HEADER, False),
        (HEADER + UNNAMED, False),
        (HEADER + UNNAMED + UNNAMED.rstrip() + " /run/docker.sock\n", True),
        (HEADER + UNNAMED.rstrip() + " @/containerd-shim/k8s.io/1.sock@\n", True),
    ],
)
def test_a_named_socket_of_others_tells_the_hosts_network(table: str, expected: bool) -> None:
    assert shared(table) is expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("fd00::1", "fd00::1")],
)
def test_the_health_check_asks_where_the_server_listens(address: str, expected: str) -> None:
    assert server({"FLANNELD_HEALTHZ_IP": address, "FLANNELD_HEALTHZ_PORT": "8471"}) == (expected, 8471)


@pytest.mark.parametrize("environment", [{}, {"FLANNELD_HEALTHZ_IP": "host", "FLANNELD_HEALTHZ_PORT": "1"}])
def test_no_place_is_no_health(environment: dict[str, str]) -> None:
    with pytest.raises((KeyError, ValueError)):
        server(environment)
