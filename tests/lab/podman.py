"""A real podman on a host of the lab, with its CNI backend and our plugin: `podman run --network overlay`.

podman in the host's network namespace, all it keeps in the host's directory
net.d/overlay.conflist    flannel-py (to bridge and host-local), then portmap
bin/flannel-py            the launcher; beside it in the search path the reference plugins
"""

from __future__ import annotations

import json
import subprocess

from flanneld_py.agent.cni import install
from tests.lab.host import Container, Host
from tests.lab.image import WAIT, write_image

REFERENCE_PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")
NETWORK = "overlay"
IMAGE = "localhost/busybox"

CONTAINERS_CONF = """\
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "cni"
cni_plugin_dirs = {plugins}
network_config_dir = "{here}/net.d"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"""


class Podman:
    """The engine of one host, whose agent is ready."""

    def __init__(self, host: Host, cgroup: str) -> None:
        self.host = host
        self._cgroup = cgroup
        self._containers: list[str] = []

    def start(self) -> None:
        """Configure the network and make the image. Raises LabError."""
        here = self.host.directory
        plugins = [str(install(here / "bin").parent), *REFERENCE_PLUGINS]
        (here / "containers.conf").write_text(CONTAINERS_CONF.format(plugins=json.dumps(plugins), here=here))
        flannel = {
            "type": "flannel-py",
            "subnetFile": str(self.host.agent.subnet_file),
            "dataDir": str(here / "cni"),
            "ipam": {"dataDir": str(here / "addresses")},
            "delegate": {"isDefaultGateway": True, "hairpinMode": True},
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        network = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [flannel, portmap]}
        (here / "net.d").mkdir()
        (here / "net.d/overlay.conflist").write_text(json.dumps(network))
        self._podman("import", str(write_image(here / "busybox.tar")), IMAGE)

    def run(self, name: str, *options: str, network: str = NETWORK, command: tuple[str, ...] = WAIT) -> Container:
        """Start a container; its address is the one in `network`, or 0.0.0.0 if it has none of its own."""
        place = ["--network", network, "--cgroup-parent", f"/{self._cgroup}"]
        self._containers.append(name)
        self._podman("run", "--detach", "--pull", "never", "--name", name, *place, *options, IMAGE, *command)
        state = json.loads(self._podman("inspect", name).stdout)[0]
        networks = state["NetworkSettings"].get("Networks") or {}
        return self.host.inside(name, state["State"]["Pid"], networks.get(network, {}).get("IPAddress"))

    def remove(self, name: str) -> None:
        """End a container. Raises LabError."""
        self._podman("rm", "--force", "--time", "0", name)
        self._containers.remove(name)

    def close(self) -> None:
        """End its containers. Raises LabError."""
        for name in list(self._containers):
            self.remove(name)

    def _podman(self, *words: str) -> subprocess.CompletedProcess[str]:
        here = self.host.directory
        places = ["--root", f"{here}/podman", "--runroot", f"{here}/podman-run", "--tmpdir", f"{here}/podman-tmp"]
        argv = ["env", f"CONTAINERS_CONF={here}/containers.conf", "podman", *places, "--storage-driver", "vfs", *words]
        return self.host.namespace.run(argv, timeout=60)
