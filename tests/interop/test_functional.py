"""flannel's own functional suite, unchanged, with our daemon in the image that it asks for: FLANNEL_SOURCE=checkout.

    h1: dockerd ── etcd's container, and those that are the suite's hosts: Debian, ours as /opt/bin/flanneld

Of its specs those of etcd and of the backends that ours has. In place of `--privileged` containers get the capabilities
that ours needs, and the `ip` in them makes a veth where the suite wants a dummy device, which not every kernel has.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import Record
from tests.lab.docker import Docker
from tests.lab.engine import ready_hosts
from tests.lab.host import Host
from tests.lab.programs import program
from tests.patience import patient

pytestmark = [pytest.mark.root, pytest.mark.timeout(1500)]

REPOSITORY = Path(__file__).parents[2]
SPECS = "etcd backends (vxlan|udp|host-gw|multi)"
ETCD_IMAGE = "quay.io/coreos/etcd:v3.6.2"
"""What the suite calls it; it is made here, of this machine's etcd."""
PACKAGES = "python3,iproute2,iptables,nftables,iputils-ping"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NO_DUMMY = """#!/bin/sh
case "$*" in
"link add name "*" type dummy") exec /usr/sbin/ip link add name "$4" type veth peer name "p$4" ;;
esac
exec /usr/sbin/ip "$@"
"""
DAEMON = """#!/bin/sh
PYTHONPATH=/opt/lib exec python3 -c 'import sys; from flanneld_py.agent.cli import main; sys.exit(main())' "$@"
"""
CLIENT = """#!/bin/bash
words=()
for word in "$@"; do
    if [ "$word" != --privileged ]; then
        words+=("$word")
    elif [ "$1" = run ]; then
        words+=(--cap-add=NET_ADMIN --cap-add=NET_RAW --cap-add=SYS_ADMIN --device=/dev/net/tun)
        words+=(--security-opt=seccomp=unconfined --security-opt=systempaths=unconfined)
    fi
done
exec {docker} --host unix://{directory}/docker.sock "${{words[@]}}"
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The suite as a program: on the lab's hosts Go finds no modules."""
    built = tmp_path / "functional.test"
    command = ["go", "test", "-c", "-tags", "functional", "-o", str(built), "./functional"]
    _run(*command, cwd=Path(os.environ["FLANNEL_SOURCE"]))
    return built


@pytest.fixture
def host() -> Iterator[Host]:
    """A host with Docker."""
    with ready_hosts(1) as lab:
        docker = Docker(lab.hosts[0], lab.run.name)
        docker.start()
        try:
            yield lab.hosts[0]
        finally:
            docker.close()


def test_flannels_functional_suite(suite: Path, host: Host, tmp_path: Path, record: Record) -> None:
    client = _script(
        tmp_path / "bin/docker", CLIENT.format(docker=shutil.which(program("docker")), directory=host.directory)
    )
    _import(host, client, _etcd(tmp_path), ETCD_IMAGE)
    _import(host, client, _hosts(tmp_path), "flannel", "--change", 'ENTRYPOINT ["/opt/bin/flanneld"]')
    environment = [f"PATH={client.parent}:{os.environ['PATH']}", "FLANNEL_DOCKER_IMAGE=flannel"]
    here = Path(os.environ["FLANNEL_SOURCE"]) / "functional"
    command: list[str | Path] = [
        "env",
        f"--chdir={here}",
        *environment,
        suite,
        "-ginkgo.v",
        "-ginkgo.no-color",
        "-ginkgo.focus",
        SPECS,
    ]
    done = host.namespace.run(command, check=False, timeout=900)
    found = re.search(r"Ran (\d+) of \d+ Specs.*?(\d+) Passed", done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-3000:]
    record("functional", SPECS, f"{found[2]} of {found[1]} passed")
    assert done.returncode == 0, done.stdout[-20_000:]
    assert found[1] == found[2] == "4"


def _import(host: Host, client: Path, image: Path, name: str, *changes: str) -> None:
    host.namespace.run([client, "import", "--change", f"ENV {PATH}", *changes, image, name], timeout=300)


def _etcd(folder: Path) -> Path:
    """Write an image of etcd, etcdctl and the libraries that they are linked with."""
    image, libraries = folder / "etcd.tar", set[str]()
    with tarfile.open(image, "w", dereference=True) as tar:
        for name in ("etcd", "etcdctl"):
            path = shutil.which(program(name))
            assert path is not None
            tar.add(path, f"usr/local/bin/{name}")
            linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
            libraries.update(re.findall(r"(/\S+) \(0x", linked))
        for library in libraries:
            tar.add(library, library.lstrip("/"))
    return image


def _hosts(folder: Path) -> Path:
    """Write an image of this machine's Debian with our daemon, for the same Python."""
    image, ours = folder / "host.tar", folder / "lib"
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    _run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", release["VERSION_CODENAME"], str(image))
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(ours), str(REPOSITORY))
    with tarfile.open(image, "a") as tar:
        tar.add(ours, "opt/lib")
        tar.add(_script(folder / "flanneld", DAEMON), "opt/bin/flanneld")
        tar.add(_script(folder / "ip", NO_DUMMY), "usr/local/sbin/ip")
        shell = tarfile.TarInfo("bin/sh")
        shell.type, shell.linkname = tarfile.SYMTYPE, "bash"
        tar.addfile(shell)
    return image


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=patient(900), check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-3000:]}"
