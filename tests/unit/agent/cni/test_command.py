"""The CNI plugin as a runtime sees it: answers, errors, and what is left, with a delegate that is a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flanneld_py.agent.cni import addresses
from flanneld_py.agent.cni.command import call, install
from flanneld_py.agent.cni.conf import netconf
from flanneld_py.agent.cni.delegate import Delegates
from flanneld_py.agent.cni.plugin import Plugin
from flanneld_py.agent.cni.spec import Json, Request
from tests.cni_call import Answer, FakeDelegate, Runtime

SUBNET_ENV = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.5.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.42.5.2/24", "gateway": "10.42.5.1"}], "dns": {}}


@dataclass(frozen=True, slots=True)
class Site:
    """A host with a subnet file, a bridge that is a script, and a network that is configured."""

    subnet_file: Path
    data: Path
    bridge: FakeDelegate
    runtime: Runtime

    def kept(self) -> list[str]:
        """The attachments on record."""
        return sorted(path.name for path in self.data.iterdir()) if self.data.exists() else []

    def call(self, command: str, container: str = "c1", **more: object) -> Answer:
        return self.runtime.call(command, container, **more)

    def collect(self, *valid: str) -> Answer:
        """GC, with eth0 of these containers in use."""
        listed = [{"containerID": container, "ifname": "eth0"} for container in valid]
        return replace(self.runtime, conf={**self.runtime.conf, "cni.dev/valid-attachments": listed}).call(
            "GC", cniVersion="1.1.0"
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    plugins = tmp_path / "bin"
    plugins.mkdir()
    bridge = FakeDelegate(plugins, "bridge")
    bridge.says("ADD", RESULT)
    FakeDelegate(plugins, "host-local")
    subnet_file = tmp_path / "subnet.env"
    subnet_file.write_text(SUBNET_ENV)
    data = tmp_path / "data"
    conf: dict[str, object] = {"cniVersion": "1.0.0", "name": "net", "type": "flannel-py"}
    conf |= {"subnetFile": str(subnet_file), "dataDir": str(data), "ipam": {"dataDir": str(tmp_path / "addresses")}}
    # Nothing but these plugins is found: the bridge of the machine that runs the tests is not looked at.
    return Site(subnet_file, data, bridge, Runtime(conf, str(plugins), environment={"PATH": str(plugins)}))


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_add_delegates_keeps_what_was_delegated_and_passes_the_result_on(site: Site, version: str) -> None:
    added = site.call("ADD", cniVersion=version)
    assert (added.code, added.said) == (0, {**RESULT, "cniVersion": version})
    [(command, variables, conf)] = site.bridge.asked()
    assert (command, variables["CNI_CONTAINERID"], variables["CNI_IFNAME"]) == ("ADD", "c1", "eth0")
    assert conf["cniVersion"] == {"1.1.0": "1.0.0"}.get(version, version), "what the delegate speaks"
    assert conf["ipam"]["ranges"] == [[{"subnet": "10.42.5.0/24"}]]
    assert site.kept() == ["c1:eth0"]
    assert json.loads((site.data / "c1:eth0").read_text()) == conf


@pytest.mark.parametrize(
    ("ipam", "expected"),
    [({}, "/run/chosen"), ({"dataDir": "/x"}, "/x"), ({"type": "static"}, None)],
    ids=["nothing asked for", "asked for", "not host-local"],
)
def test_host_local_is_told_where_to_keep_addresses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ipam: Json, expected: str | None
) -> None:
    monkeypatch.setattr(addresses, "directory", lambda *_: "/run/chosen")
    file = tmp_path / "subnet.env"
    file.write_text(SUBNET_ENV)
    conf = netconf({"cniVersion": "1.0.0", "name": "net", "subnetFile": str(file), "ipam": ipam})
    for kind in ("bridge", "host-local", "static"):
        FakeDelegate(tmp_path, kind)
    plugin = Plugin(
        Request("ADD", "c1", "/x", "eth0", (str(tmp_path),), "1.0.0", {}), conf, Delegates((str(tmp_path),), {})
    )
    made = plugin._delegate(plugin._subnets())["ipam"]
    assert isinstance(made, dict)
    assert made.get("dataDir") == expected


def test_del_undoes_what_was_added_although_the_subnet_is_another_now(site: Site) -> None:
    site.call("ADD")
    site.subnet_file.write_text(SUBNET_ENV.replace("10.42.5", "10.42.6"))
    assert site.call("DEL").code == 0
    (_, _, added), (command, _, deleted) = site.bridge.asked()
    assert (command, deleted) == ("DEL", added)
    assert site.kept() == []


def test_del_needs_no_subnet_file_and_no_namespace(site: Site) -> None:
    site.call("ADD")
    site.subnet_file.unlink()
    assert site.call("DEL", netns="").code == 0
    assert site.kept() == []


def test_del_of_a_container_never_added_succeeds_and_makes_nothing(site: Site) -> None:
    nowhere = replace(site, runtime=replace(site.runtime, path="/nonexistent"))
    assert nowhere.call("DEL") == Answer(0, {}, "")
    assert not site.data.exists()


def test_del_of_what_flannels_plugin_added(site: Site) -> None:
    site.data.mkdir()
    (site.data / "c1").write_text(json.dumps({"cniVersion": "0.3.1", "name": "net", "type": "bridge"}))
    assert site.call("DEL").code == 0
    assert [command for command, _, _ in site.bridge.asked()] == ["DEL"]
    assert site.kept() == []


def test_a_torn_record_is_of_an_add_that_delegated_nothing(site: Site) -> None:
    site.data.mkdir()
    (site.data / "c1:eth0").write_text('{"cniVersion": "0.3')
    assert site.call("DEL") == Answer(0, {}, "")
    assert (site.bridge.asked(), site.kept()) == ([], [])


def test_a_del_that_fails_can_be_repeated(site: Site) -> None:
    site.call("ADD")
    site.bridge.says("DEL", {"code": 5, "msg": "no memory"}, code=1)
    assert site.call("DEL").error == (5, "bridge: no memory")
    assert site.kept() == ["c1:eth0"]
    site.bridge.says("DEL", None)
    assert site.call("DEL").code == 0
    assert site.kept() == []


def test_two_interfaces_of_a_container_are_two(site: Site) -> None:
    site.call("ADD")
    site.call("ADD", ifname="eth1")
    assert site.kept() == ["c1:eth0", "c1:eth1"]
    site.call("DEL", ifname="eth1")
    assert site.kept() == ["c1:eth0"]


def test_an_add_that_fails_leaves_nothing(site: Site) -> None:
    site.bridge.says("ADD", {"code": 100, "msg": "cni0 already has an IP address", "details": "10.1.0.1"}, code=1)
    failed = site.call("ADD")
    assert failed.error == (100, "bridge: cni0 already has an IP address")
    assert failed.said["details"] == "10.1.0.1"
    assert failed.said["cniVersion"] == "1.0.0"
    assert [command for command, _, _ in site.bridge.asked()] == ["ADD", "DEL"]
    assert site.kept() == []


def test_an_add_that_cannot_be_undone_stays_on_record(site: Site) -> None:
    for command in ("ADD", "DEL"):
        site.bridge.says(command, {"code": 5, "msg": "no memory"}, code=1)
    assert site.call("ADD").error == (5, "bridge: no memory")
    assert site.kept() == ["c1:eth0"]


def test_a_second_add_that_fails_does_not_cost_the_first_its_interface(site: Site) -> None:
    site.call("ADD")
    site.bridge.says("ADD", {"code": 999, "msg": "duplicate allocation is not allowed"}, code=1)
    assert site.call("ADD").code == 1
    assert [command for command, _, _ in site.bridge.asked()] == ["ADD", "ADD"]
    assert site.kept() == ["c1:eth0"]


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (None, 2, r"bridge: ADD ended with exit code 2, saying b''"),
        ("panic", 2, r"bridge: ADD ended with exit code 2, saying b'panic\n'"),
        ("certainly", 0, r"bridge: its answer to ADD is no JSON object: b'certainly\n'"),
    ],
)
def test_a_delegate_that_does_not_keep_to_the_protocol(site: Site, answer: object, code: int, message: str) -> None:
    site.bridge.says("ADD", answer, code=code)
    assert site.call("ADD").error == (101, message)
    assert site.kept() == []


def test_an_address_outside_the_hosts_subnet_is_refused(site: Site) -> None:
    site.bridge.says("ADD", {"ips": [{"address": "10.42.9.2/24"}]})
    code, message = site.call("ADD").error
    assert (code, message.split(":")[0]) == (102, "10.42.9.2/24 is not in this host's subnet 10.42.5.0/24")
    assert [command for command, _, _ in site.bridge.asked()] == ["ADD", "DEL"]
    assert site.kept() == []


def test_no_subnet_file_yet_is_to_be_tried_again(site: Site) -> None:
    site.subnet_file.unlink()
    code, message = site.call("ADD").error
    assert code == 11
    assert message.startswith(f"there is no {site.subnet_file}: this host has no subnet yet; flanneld-py writes it")
    assert not site.data.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET is in it"),
        (
            SUBNET_ENV.replace("10.42.5", "10.43.5"),
            "FLANNEL_SUBNET 10.43.5.0/24 is not inside FLANNEL_NETWORK 10.42.0.0/16: it is of another network",
        ),
        (SUBNET_ENV.replace("1450", "x"), "FLANNEL_MTU=x: expected 1 to 65535 bytes"),
    ],
)
def test_a_subnet_file_that_cannot_be_right_is_named(site: Site, text: str, message: str) -> None:
    site.subnet_file.write_text(text)
    assert site.call("ADD").error == (100, f"{site.subnet_file}: {message}")
    assert not site.data.exists()


def ip_shows(site: Site, address: str, ports: int = 0) -> Path:
    """Give the plugin an `ip` that shows a bridge with this address and that many ports; return its list of calls."""
    family, local, length = "inet6" if ":" in address else "inet", *address.split("/")
    info = {"family": family, "local": local, "prefixlen": int(length), "scope": "global"}
    bridge = [{"ifname": "cni0", "linkinfo": {"info_kind": "bridge"}, "addr_info": [info]}]
    port = [{"ifname": "veth"}] * ports
    calls = site.data.parent / "ip.calls"
    program = Path(site.runtime.path, "ip")
    program.write_text(
        f"#!{sys.executable} -IS\nimport sys\nopen({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"
        f"print({json.dumps(port)!r} if 'master' in sys.argv else {json.dumps(bridge)!r})\n"
    )
    program.chmod(0o755)
    return calls


@pytest.mark.parametrize("address", ["10.42.9.1/24", "10.42.5.1/25", "10.42.5.7/24"])
def test_a_bridge_of_an_earlier_lease_goes_if_no_port_is_in_it(site: Site, address: str) -> None:
    calls = ip_shows(site, address)
    assert site.call("ADD").code == 0
    assert "link delete dev cni0" in calls.read_text().splitlines()


@pytest.mark.parametrize("address", ["10.42.5.1/24", "fd00:42:0:9::1/64"])
def test_a_bridge_that_has_the_leases_address_stays(site: Site, address: str) -> None:
    calls = ip_shows(site, address)
    assert site.call("ADD").code == 0
    assert calls.read_text().splitlines() == ["-json -details address show dev cni0"]


def test_a_bridge_of_an_earlier_lease_with_containers_in_it_is_named_and_stays(site: Site) -> None:
    calls = ip_shows(site, "10.42.9.1/24", ports=2)
    assert site.call("ADD").error == (
        103,
        "cni0 still has 10.42.9.1/24 of an earlier lease: remove the containers in it (2), and the next one makes it "
        "anew",
    )
    assert "delete" not in calls.read_text()
    assert (site.bridge.asked(), site.kept()) == ([], [])


def test_an_ipv6_bridge_of_an_earlier_lease_goes_only_without_ports(site: Site) -> None:
    text = "FLANNEL_IPV6_NETWORK=fd00:42::/48\nFLANNEL_IPV6_SUBNET=fd00:42:0:5::1/64\n"
    site.subnet_file.write_text(SUBNET_ENV.replace("FLANNEL_MTU", f"{text}FLANNEL_MTU"))
    for ports, deleted in ((1, False), (0, True)):
        calls = ip_shows(site, "fd00:42:0:9::1/64", ports)
        assert site.call("ADD", f"c{ports}").code == 0
        assert ("delete" in calls.read_text()) == deleted


@pytest.mark.parametrize(
    "delegate",
    [{"isGateway": False}, {"forceAddress": True}, {"type": "host-local"}, {"bridge": "br7"}],
    ids=["no gateway", "the operator's choice", "no bridge", "another bridge"],
)
def test_a_bridge_that_is_not_ours_to_judge_stays(site: Site, delegate: dict[str, object]) -> None:
    calls = ip_shows(site, "10.42.9.1/24", ports=1)
    site.call("ADD", delegate=delegate)
    asked = calls.read_text() if calls.exists() else ""
    assert "cni0" not in asked


@pytest.mark.parametrize("kind", ["bridge", "host-local"])
def test_a_missing_plugin_is_named_before_anything_is_made(site: Site, kind: str) -> None:
    Path(site.runtime.path, kind).unlink()
    code, message = site.call("ADD").error
    assert code == 101
    assert message.startswith(f"there is no plugin {kind} in CNI_PATH={site.runtime.path}: install")
    assert not site.data.exists()


@pytest.mark.parametrize(
    ("command", "more", "code", "message"),
    [
        ("ADD", {"cniVersion": "9.0.0"}, 1, "the network configuration has cniVersion 9.0.0: expected one of 0.3.0,"),
        ("ADD", {"cniVersion": None}, 1, "the network configuration has no cniVersion: expected"),
        ("CHECK", {"cniVersion": "0.3.1"}, 1, "CHECK is not in cniVersion 0.3.1: expected 0.4.0 or newer"),
        ("GC", {}, 1, "GC is not in cniVersion 1.0.0: expected 1.1.0 or newer"),
        ("MEND", {}, 4, "CNI_COMMAND=MEND: expected one of ADD,"),
        ("ADD", {"netns": ""}, 4, "ADD needs CNI_NETNS in the environment"),
        ("ADD", {"container": "../x"}, 4, "CNI_CONTAINERID='../x': expected letters"),
        ("ADD", {"ifname": "a/b"}, 4, "CNI_IFNAME='a/b': expected a device name"),
        ("ADD", {"name": "a/b"}, 7, 'the network\'s "name" is \'a/b\': expected a name without "/"'),
        ("ADD", {"name": ""}, 7, "the network's \"name\" is ''"),
        ("ADD", {"delegate": ["bridge"]}, 7, "\"delegate\" is ['bridge']: expected an object"),
        ("ADD", {"delegate": {"type": 7}}, 7, '"delegate.type" is 7: expected a string'),
        ("ADD", {"delegate": {"type": "../x"}}, 7, "network net: \"delegate.type\" is '../x': expected a plugin's"),
        ("ADD", {"delegate": {"name": "x"}}, 7, 'network net: "name" does not belong in "delegate"'),
        ("ADD", {"delegate": {"ipam": {}}}, 7, 'network net: "ipam" does not belong in "delegate"'),
        ("ADD", {"ipam": {"routes": {}}}, 7, '"ipam.routes" is {}: expected a list'),
        ("ADD", {"subnetFile": 1}, 7, '"subnetFile" is 1: expected a string'),
        ("CHECK", {}, 7, 'network net: CHECK needs "prevResult" in the configuration'),
    ],
)
def test_bad_input_gets_the_specifications_code_and_a_sentence(
    site: Site, command: str, more: dict[str, object], code: int, message: str
) -> None:
    container = str(more.get("container", "c1"))
    answer = site.call(command, container, **{key: value for key, value in more.items() if key != "container"})
    assert answer.code == 1
    assert (answer.said["code"], answer.stderr) == (code, "")
    assert answer.said["msg"].startswith(message)
    assert (site.bridge.asked(), site.data.exists()) == ([], False)


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"{", "the network configuration on standard input is no JSON"),
        (b"\xff\xfe", "the network configuration on standard input is no JSON"),
        (b"[]", "the network configuration is a list: expected an object"),
        (b"", "the network configuration on standard input is no JSON"),
    ],
)
def test_input_that_is_no_configuration(stdin: bytes, message: str) -> None:
    code, said = call({"CNI_COMMAND": "ADD"}, stdin)
    assert said is not None
    assert (code, said["code"], said["cniVersion"]) == (1, 6, "1.1.0")
    assert str(said["msg"]).startswith(message)


def test_a_directory_that_cannot_be_used_is_an_io_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, message = site.call("ADD", dataDir=str(tmp_path / "file")).error
    assert (code, str(tmp_path / "file") in message) == (5, True)


def test_version_lists_what_is_spoken() -> None:
    versions = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    for stdin, version in ((b'{"cniVersion": "0.4.0"}', "0.4.0"), (b'{"cniVersion": "7"}', "1.1.0"), (b"", "1.1.0")):
        said = {"cniVersion": version, "supportedVersions": versions}
        assert call({"CNI_COMMAND": "VERSION"}, stdin) == (0, said)


def test_check_asks_the_delegate_about_what_was_added(site: Site) -> None:
    site.call("ADD", cniVersion="1.1.0")
    assert site.call("CHECK", cniVersion="1.1.0", prevResult={**RESULT, "cniVersion": "1.1.0"}) == Answer(0, {}, "")
    (_, _, added), (command, _, checked) = site.bridge.asked()
    assert (command, checked) == ("CHECK", {**added, "prevResult": RESULT})
    code, message = site.call("CHECK", "c2", prevResult=RESULT).error
    assert (code, message) == (3, "eth0 of container c2 was not added to network net")


def test_check_tells_of_a_container_of_a_subnet_that_the_host_has_lost(site: Site) -> None:
    site.call("ADD")
    site.subnet_file.write_text(SUBNET_ENV.replace("10.42.5", "10.42.6"))
    code, message = site.call("CHECK", prevResult=RESULT).error
    assert (code, message.split(":")[0]) == (102, "10.42.5.2/24 is not in this host's subnet 10.42.6.0/24")


def test_gc_deletes_what_is_not_listed_of_its_own_network(site: Site) -> None:
    for container in ("c1", "c2"):
        site.call("ADD", container)
    site.call("ADD", "c3", name="other")
    assert site.collect("c1") == Answer(0, {}, "")
    assert site.kept() == ["c1:eth0", "c3:eth0"]
    command, variables, _ = site.bridge.asked()[-1]
    assert (command, variables["CNI_CONTAINERID"], variables["CNI_IFNAME"]) == ("DEL", "c2", "eth0")


def test_gc_without_a_list_deletes_nothing(site: Site) -> None:
    site.call("ADD")
    assert site.call("GC", cniVersion="1.1.0").error[0] == 7
    assert site.kept() == ["c1:eth0"]


@pytest.mark.parametrize("subnet", [SUBNET_ENV, None, "nonsense\n"], ids=["there", "not there", "broken"])
def test_gc_is_passed_on_whatever_fails(site: Site, subnet: str | None) -> None:
    """One container whose DEL fails for good must not keep the delegate's own rests from being removed for ever."""
    for container in ("c1", "c2", "c3"):
        assert site.call("ADD", container).code == 0
    site.subnet_file.unlink()
    if subnet is not None:
        site.subnet_file.write_text(subnet)
    site.bridge.says("VERSION", {"supportedVersions": ["1.0.0", "1.1.0"]})
    site.bridge.says("DEL", {"code": 999, "msg": "cannot"}, code=1)
    assert site.collect("c3").error == (999, "bridge: cannot")
    asked = [(command, variables.get("CNI_CONTAINERID", "")) for command, variables, _ in site.bridge.asked()[3:]]
    assert asked[:2] == [("DEL", "c1"), ("DEL", "c2")]
    assert asked[2][0] == "GC"
    command, _, conf = site.bridge.asked()[-1]
    assert (command, conf["ipam"]["ranges"]) == ("GC", [[{"subnet": "10.42.5.0/24"}]])
    site.bridge.says("DEL", {})
    assert site.collect("c3").code == 0
    assert site.kept() == ["c3:eth0"]


def test_without_a_path_for_plugins_what_needs_none_is_done(site: Site) -> None:
    nowhere = replace(site, runtime=replace(site.runtime, path=""))
    assert nowhere.call("DEL").code == 0, "nothing was added"
    code, message = nowhere.call("STATUS", cniVersion="1.1.0").error
    assert (code, message.startswith("there is no plugin bridge in CNI_PATH=:")) == (50, True)
    assert nowhere.call("ADD").error == (4, "ADD needs CNI_PATH in the environment")


def test_gc_and_status_are_passed_on_to_a_delegate_that_knows_them(site: Site) -> None:
    site.bridge.says("VERSION", {"supportedVersions": ["1.0.0", "1.1.0"]})
    assert site.collect("c1").code == 0
    assert site.call("STATUS", cniVersion="1.1.0").code == 0
    (gc, _, conf), (status, _, _) = site.bridge.asked()
    assert (gc, status) == ("GC", "STATUS")
    assert conf["cni.dev/valid-attachments"] == [{"containerID": "c1", "ifname": "eth0"}]
    site.bridge.says("STATUS", {"code": 51, "msg": "limited"}, code=1)
    assert site.call("STATUS", cniVersion="1.1.0").error == (51, "bridge: limited")


def test_status_is_not_available_until_there_is_a_subnet(site: Site) -> None:
    assert site.call("STATUS", cniVersion="1.1.0") == Answer(0, {}, "")
    site.subnet_file.unlink()
    code, message = site.call("STATUS", cniVersion="1.1.0").error
    assert (code, message.startswith(f"there is no {site.subnet_file}")) == (50, True)


def test_the_launcher_is_the_same_plugin(site: Site, tmp_path: Path) -> None:
    launcher = install(tmp_path / "opt/cni/bin")
    assert launcher.read_text().startswith(f"#!{sys.executable} -IS\n")
    quick = replace(site, runtime=replace(site.runtime, plugin=launcher))
    assert quick.call("ADD").said == RESULT
    assert quick.call("DEL").code == 0
    assert list(launcher.parent.iterdir()) == [launcher]


def test_it_imports_nothing_that_is_slow_to_import() -> None:
    program = "import sys, flanneld_py.agent.cni.command; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "socket", "ssl", "logging", "grpc", "google", "pyroute2", "typing_extensions"}
    ours = {name for name in loaded if name.startswith(("flanneld_py.registry", "flanneld_py.encap"))}
    assert ours == set()


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["--install"], 2), (["add"], 2)])
def test_without_a_runtime_it_says_what_it_is(site: Site, arguments: list[str], code: int) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CNI_")}
    done = subprocess.run(
        [site.runtime.plugin, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == code
    assert "--install DIR" in done.stdout + done.stderr
