"""A real podman on a host of the lab, with our plugin: `podman run --network overlay`.

podman in the host's network namespace, all it keeps in the host's directory
bin/flannel-py            the launcher

podman 4, by CNI          net.d/overlay.conflist: flannel-py (to bridge and host-local), then portmap
podman 5, by netavark     net.d/overlay.json, by `podman network create --driver flannel-py`
"""

from __future__ import annotations

import json
import subprocess
from functools import cache

from flanneld_py.agent.cni.command import install
from tests.lab.host import Container, Host
from tests.lab.image import WAIT, write_image

REFERENCE_PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")
NETWORK = "overlay"
IMAGE = "localhost/busybox"

CONTAINERS_CONF = """\
[containers]
log_driver = "k8s-file"
pids_limit = 0
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "{backend}"
cni_plugin_dirs = {plugins}
netavark_plugin_dirs = {plugins}
network_config_dir = "{here}/net.d"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"""


@cache
def backend() -> str:
    """What this machine's podman makes networks with: "cni" before 5, "netavark" from 5 on."""
    said = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=True).stdout
    return "netavark" if int(said.split()[-1].split(".")[0]) >= 5 else "cni"


class Podman:
    """The engine of one host, whose agent is ready."""

    def __init__(self, host: Host, cgroup: str) -> None:
        self.host = host
        self.network = host.directory / "net.d" / (f"{NETWORK}.conflist" if backend() == "cni" else f"{NETWORK}.json")
        self.state = host.directory / "flannel-py"
        """What the plugin keeps: `attachments`, and `addresses` of host-local."""
        self._cgroup = cgroup
        self._containers: list[str] = []

    def start(self) -> None:
        """Configure the network and make the image. Raises LabError."""
        here = self.host.directory
        self.configure()
        self.network.parent.mkdir()
        if backend() == "cni":
            self._write_conflist()
        else:
            self.create()
        self.podman("import", str(write_image(here / "busybox.tar")), IMAGE)

    def configure(self) -> None:
        """Write what `podman` reads. It needs no agent."""
        here = self.host.directory
        plugins = [str(install(here / "bin").parent), *REFERENCE_PLUGINS]
        conf = CONTAINERS_CONF.format(backend=backend(), plugins=json.dumps(plugins), here=here)
        (here / "containers.conf").write_text(conf)

    def create(self, *options: str, name: str = NETWORK) -> None:
        """Make a network of podman 5's. Raises LabError."""
        paths = {"subnet_file": self.host.agent.subnet_file, "data_dir": self.state}
        named = [word for key, path in paths.items() for word in ("--opt", f"{key}={path}")]
        self.podman("network", "create", "--driver", "flannel-py", *named, *options, name)

    def _write_conflist(self) -> None:
        flannel = {
            "type": "flannel-py",
            "subnetFile": str(self.host.agent.subnet_file),
            "dataDir": str(self.state / "attachments"),
            "ipam": {"dataDir": str(self.state / "addresses")},
            "delegate": {"isDefaultGateway": True, "hairpinMode": True},
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        network = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [flannel, portmap]}
        self.network.write_text(json.dumps(network))

    def run(self, name: str, *options: str, network: str = NETWORK, command: tuple[str, ...] = WAIT) -> Container:
        """Start a container; its address is the one in `network`, or 0.0.0.0 if it has none of its own."""
        place = ["--network", network, "--cgroup-parent", f"/{self._cgroup}"]
        self._containers.append(name)
        self.podman("run", "--detach", "--pull", "never", "--name", name, *place, *options, IMAGE, *command)
        state = json.loads(self.podman("inspect", name).stdout)[0]
        networks = state["NetworkSettings"].get("Networks") or {}
        return self.host.inside(name, state["State"]["Pid"], networks.get(network, {}).get("IPAddress"))

    def remove(self, name: str) -> None:
        """End a container. Raises LabError."""
        self.podman("rm", "--force", "--time", "0", name)
        self._containers.remove(name)

    def close(self) -> None:
        """End its containers. Raises LabError."""
        for name in list(self._containers):
            self.remove(name)

    def podman(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman with what it keeps in the host's directory. Raises LabError on a non-zero exit code if `check`."""
        here = self.host.directory
        places = ["--root", f"{here}/podman", "--runroot", f"{here}/podman-run", "--tmpdir", f"{here}/podman-tmp"]
        argv = ["env", f"CONTAINERS_CONF={here}/containers.conf", "podman", *places, "--storage-driver", "vfs", *words]
        return self.host.namespace.run(argv, check=check, timeout=60)
