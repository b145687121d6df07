"""What is wrong on a host, and what a real agent says to it: a line that names the option or the thing, and the exit
code, or it waits; and once it is mended, it works without being told.

      h1 ── core: etcd, and etcd with mutual TLS

On a booted machine, under the unit: tests/boot/test_service.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.certificates import Authority
from tests.lab.etcd import EtcdServer
from tests.lab.host import Host
from tests.lab.lab import DEFAULT_FLANNELD
from tests.netns.conftest import MakeLab
from tests.netns.test_agent import PREFIX, device, etcd, until
from tests.patience import patient

pytestmark = pytest.mark.root

TAKEN = "import socket, sys; s = socket.socket(2, int(sys.argv[1])); s.bind(('', int(sys.argv[2]))); s.listen(1) if "
TAKEN += "sys.argv[1] == '1' else None; print(flush=True); sys.stdin.read()"
UDP, TCP = "2", "1"


@pytest.fixture
def host(make_lab: MakeLab) -> Host:
    return make_lab(hosts=1, overlay="none").hosts[0]


def said(host: Host, words: str) -> list[str]:
    """The lines of the agent's log that have these words."""
    return [line for line in host.agent.log_tail(1000).splitlines() if words in line]


def is_ready(host: Host) -> bool:
    return host.namespace.run(["curl", "-sf", "http://127.0.0.1:8081/readyz"], check=False).returncode == 0


@contextmanager
def taken(host: Host, kind: str, port: int) -> Iterator[None]:
    """Let another program of the host have a port meanwhile."""
    command = ["nsenter", f"--net={host.namespace.path}", sys.executable, "-c", TAKEN, kind, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        yield
        other.communicate()


# Certificates


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ca")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.mark.parametrize(
    ("ca", "cert", "key", "words"),
    [
        ("absent", "cert", "key", "--etcd-cafile"),
        ("ca", "absent", "key", "--etcd-certfile"),
        ("ca", "cert", "absent", "--etcd-keyfile"),
        ("garbage", "cert", "key", "--etcd-cafile"),
        ("ca", "garbage", "key", "--etcd-certfile"),
        ("ca", "cert", "garbage", "--etcd-keyfile"),
        ("ca", "cert", "other", "do not belong together"),
        ("ca", "key", "cert", "--etcd-certfile"),
        ("key", "cert", "key", "--etcd-cafile"),
        ("ca", "cert", "secret", "passphrase"),
    ],
)
def test_files_that_cannot_be_right_end_it_with_code_2(
    authority: Authority, stranger: Authority, tmp_path: Path, ca: str, cert: str, key: str, words: str
) -> None:
    own, other = authority.issue("own", "172.30.0.11"), stranger.issue("other", "172.30.0.11")
    assert own.ca
    assert own.certificate
    assert own.key
    assert other.key
    files = {"ca": own.ca, "cert": own.certificate, "key": own.key, "other": other.key}
    files["garbage"] = tmp_path / "garbage.pem"
    files["garbage"].write_text("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
    files["secret"] = tmp_path / "secret.key"
    encrypt = f"openssl pkey -in {own.key} -aes128 -passout pass:once -out {files['secret']}"
    subprocess.run(encrypt.split(), check=True, capture_output=True)
    files["absent"] = tmp_path / "absent.pem"
    flags = [f"--etcd-{name}file={files[file]}" for name, file in (("ca", ca), ("cert", cert), ("key", key))]
    command = [str(DEFAULT_FLANNELD), "--etcd-endpoints=https://127.0.0.1:9", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=patient(20), check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert str(files[{"ca": ca, "cert": cert, "key": key}[_wrong(ca, cert, key)]]) in done.stderr


def _wrong(ca: str, cert: str, key: str) -> str:
    """Which of the three the message has to show."""
    return "ca" if ca != "ca" else "cert" if cert != "cert" else "key"


@pytest.fixture
def secure(host: Host, make_lab: MakeLab, authority: Authority, tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd with mutual TLS, and a network config, beside the lab's own."""
    own = authority.issue("server", "172.30.0.1")
    core = host.namespace.name.replace("-h1", "-core")
    server = EtcdServer(
        tmp_path / "secure",
        name="secure",
        listen="172.30.0.1",
        client_port=2479,
        peer_port=2480,
        namespace=core,
        cert=own.certificate,
        key=own.key,
        ca=own.ca,
        require_client_certificate=True,
    )
    with server:
        server.ctl("put", f"{PREFIX}/config", stdin=b'{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}')
        yield server


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("authority", "certificate that our CA does not vouch for; check --etcd-cafile"),
        ("certificate", "does not accept us; check --etcd-certfile and --etcd-keyfile"),
    ],
)
def test_certificates_that_are_refused_are_waited_for_and_read_again(
    host: Host, secure: EtcdServer, authority: Authority, stranger: Authority, tmp_path: Path, wrong: str, words: str
) -> None:
    right, other = authority.issue("client", "172.30.0.11"), stranger.issue("client", "172.30.0.11")
    paths = {name: tmp_path / name for name in ("ca", "cert", "key")}

    def install(name: str, source: Path | None) -> None:
        assert source is not None
        paths[name].write_bytes(source.read_bytes())

    install("ca", other.ca if wrong == "authority" else right.ca)
    install("cert", other.certificate if wrong == "certificate" else right.certificate)
    install("key", other.key if wrong == "certificate" else right.key)
    flags = [f"--etcd-{name}file={path}" for name, path in paths.items()]
    host.agent.start("--etcd-endpoints", secure.endpoint, *flags)
    until(lambda: said(host, words), "it says which file is wrong")
    assert host.agent.alive
    install("ca", right.ca)
    install("cert", right.certificate)
    install("key", right.key)
    host.agent.wait_ready(30)
    assert len(said(host, "WARNING no network config")) <= 2


# etcd and the config


def test_without_any_settings_it_says_where_it_looks_for_etcd(host: Host) -> None:
    host.agent.start("--etcd-endpoints=http://127.0.0.1:4001,http://127.0.0.1:2379")
    until(lambda: said(host, "no network config"), "it says what it waits for")
    line = said(host, "no network config")[0]
    for words in ("http://127.0.0.1:4001", "http://127.0.0.1:2379", "--etcd-endpoints"):
        assert words in line
    assert "failed to connect to all addresses" not in line


def test_an_etcd_that_is_not_there_at_the_start_is_waited_for_without_many_words(make_lab: MakeLab) -> None:
    lab = make_lab(hosts=1, overlay="none")
    host = lab.hosts[0]
    etcd(lab).stop()
    host.agent.start()
    until(lambda: said(host, "refuses connections"), "it says what it waits for")
    etcd(lab).start()
    host.agent.wait_ready(30)
    assert len(said(host, "WARNING no network config")) <= 2


def test_flannels_flag_for_a_config_in_a_file_is_refused(host: Host) -> None:
    done = host.namespace.run([DEFAULT_FLANNELD, "--net-config-path=/etc/absent.json"], check=False)
    assert done.returncode == 2
    assert "--net-config-path is not supported" in done.stderr


# Files and ports


@pytest.mark.parametrize("what", ["a folder", "in a file", "in no folder"])
def test_a_subnet_file_that_cannot_be_written_is_exit_code_1(make_lab: MakeLab, tmp_path: Path, what: str) -> None:
    lab = make_lab(hosts=1, overlay="none")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    paths = {"a folder": tmp_path / "folder", "in a file": tmp_path / "file/x", "in no folder": Path("/proc/no/x")}
    command = [str(DEFAULT_FLANNELD), "--etcd", etcd(lab).endpoint, f"--subnet-file={paths[what]}"]
    done = lab.hosts[0].namespace.run(command, check=False, timeout=20)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "CRITICAL" in last
    assert str(paths[what]) in last
    assert "--subnet-file" in last


def test_a_health_port_that_is_taken_is_exit_code_1(host: Host) -> None:
    command = [str(DEFAULT_FLANNELD), "--etcd", "http://127.0.0.1:9", "--healthz-port=8099"]
    with taken(host, TCP, 8099):
        done = host.namespace.run(command, check=False, timeout=20)
    assert done.returncode == 1
    wanted = "cannot serve health on 0.0.0.0:8099 (Address already in use); change --healthz-ip or --healthz-port"
    assert wanted in done.stderr


def test_a_vxlan_port_that_is_taken_is_waited_for(host: Host) -> None:
    with taken(host, UDP, 8472):
        host.agent.start()
        until(lambda: said(host, "the device cannot be made"), "it says so")
        assert "Backend.Port" in said(host, "the device cannot be made")[0]
        # The device is there, and cannot be up: the second try meets it.
        until(lambda: len(said(host, "cannot change flannel.1")) == 1, "it tries again")
        assert not is_ready(host)
        assert not host.agent.subnet_file.exists()
    host.agent.wait_ready(60)
    assert "UP" in device(host)["flags"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("id 1 dstport 8472", "vx0 has VNI 1 on port 8472 already"),
        ("external dstport 8472", "Backend.Port"),
        ("id 7 dstport 8472 gbp", "Backend.Port"),
    ],
)
def test_a_vxlan_device_of_somebody_else_in_the_way_is_named(host: Host, other: str, words: str) -> None:
    host.namespace.ip(
        f"link add vx0 type vxlan {other} local {host.address} dev eth0"
        if "external" not in other
        else f"link add vx0 type vxlan {other}",
        "link set vx0 up",
    )
    host.agent.start()
    until(lambda: said(host, "the device cannot be made"), "it says so")
    assert words in said(host, "the device cannot be made")[0]
    assert not is_ready(host)
    host.namespace.ip("link del vx0")
    host.agent.wait_ready(60)
    assert "UP" in device(host)["flags"]


def test_a_userspace_port_that_is_taken_is_waited_for(host: Host) -> None:
    with taken(host, UDP, 8472):
        host.agent.start("--datapath=userspace")
        until(lambda: said(host, "is not served"), "it says so")
        assert "Backend.Port" in said(host, "is not served")[0]
        assert not is_ready(host)
    host.agent.wait_ready(30)


# Kernels


@pytest.fixture(scope="module")
def without_vxlan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the kernel has no VXLAN devices."""
    library = tmp_path_factory.mktemp("preload") / "without_vxlan.so"
    source = Path(__file__).with_name("without_vxlan.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def test_a_kernel_without_vxlan_is_named_where_it_has_to_carry(host: Host, without_vxlan: dict[str, str]) -> None:
    host.agent.start("--datapath=kernel", env=without_vxlan)
    until(lambda: said(host, "the device cannot be made"), "it says so")
    line = said(host, "the device cannot be made")[0]
    assert "modprobe vxlan" in line
    assert "--datapath" in line
    assert host.agent.alive


def test_a_kernel_without_vxlan_is_done_without(host: Host, without_vxlan: dict[str, str]) -> None:
    host.agent.start(env=without_vxlan)
    host.agent.wait_ready()
    assert "the kernel has no VXLAN devices" in said(host, "packets are carried in userspace")[0]


def test_a_kernel_without_tun_is_named_and_waited_for(make_lab: MakeLab, tmp_path: Path) -> None:
    wrapper = tmp_path / "flanneld"
    hidden = 'mount -t tmpfs none /dev/net && exec "$0" "$@"'
    wrapper.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{hidden}' {DEFAULT_FLANNELD} \"$@\"\n")
    wrapper.chmod(0o755)
    host = make_lab(hosts=1, overlay="none", flanneld=wrapper).hosts[0]
    host.agent.start("--datapath=userspace")
    until(lambda: said(host, "is not served"), "it says so")
    assert "modprobe tun" in said(host, "is not served")[0]
    assert not is_ready(host)
    host.namespace.run(["nsenter", "--target", str(host.agent.pid), "--mount", "umount", "/dev/net"])
    host.agent.wait_ready(30)
