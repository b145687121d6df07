"""A real Docker engine on a host of the lab, beside those of other hosts and runs.

    dockerd in the host's network namespace, all it keeps in the host's directory:  --bip and --mtu from subnet.env
    image `busybox`, made here of the machine's static busybox: nothing is pulled
    containers in the run's cgroup, so that they are found and ended whatever happens to dockerd

What Docker does not do is left to the agent: masquerade (--ip-masq=false) and the overlay's forward rules.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.host import Container, Host
from tests.lab.image import WAIT, write_image
from tests.lab.namespace import LabError
from tests.lab.programs import program, search_path
from tests.patience import patient, within


class Docker:
    """The engine of one host, whose agent is ready unless it is started by `launch`."""

    def __init__(self, host: Host, cgroup: str) -> None:
        self.host = host
        self.log = host.directory / "dockerd.log"
        self._cgroup = cgroup
        self._socket = f"unix://{host.directory}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, timeout: float = 40, config: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Start dockerd with the host's subnet and make the image. Raises LabError, and then none runs.

        `config` is what stands in its daemon.json.
        """
        subnet = self.host.agent.subnet_env()
        # Docker sets FORWARD to DROP only where it turns forwarding on itself, as on a host nobody prepared.
        self.host.namespace.write_sysctl("net.ipv4.ip_forward", "0")
        options = ("--bip", subnet["FLANNEL_SUBNET"], "--mtu", subnet["FLANNEL_MTU"], "--ip-masq=false")
        self.launch(*options, timeout=timeout, config=config, env=env)

    def launch(
        self,
        *options: str,
        timeout: float = 40,
        config: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """The same with these options in place of the subnet's, for a host whose agent need not be ready."""
        try:
            self._launch(options, timeout, config or {}, env or os.environ)
        except BaseException:
            self.close()
            raise

    def _launch(
        self, options: Sequence[str], timeout: float, config: Mapping[str, object], environment: Mapping[str, str]
    ) -> None:
        here = self.host.directory
        (here / "daemon.json").write_text(json.dumps(config))
        argv: list[str | Path] = [program("dockerd"), "--host", self._socket, "--config-file", here / "daemon.json"]
        argv += options
        argv += ["--data-root", here / "docker", "--exec-root", here / "docker-run", "--pidfile", here / "docker.pid"]
        argv += ["--storage-driver", "vfs", "--cgroup-parent", f"/{self._cgroup}"]
        with self.log.open("ab") as log:
            env = {**environment, "PATH": search_path("dockerd", environment)}
            self._process = self.host.namespace.popen(argv, stdout=log, stderr=subprocess.STDOUT, env=env)
        deadline = within(timeout)
        while self.docker("version", check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"dockerd on {self.host.name} does not answer:\n{self._log_tail()}")
            time.sleep(0.05)
        self.docker("import", str(write_image(here / "busybox.tar")), "busybox")

    @property
    def version(self) -> tuple[int, ...]:
        """Which dockerd it is."""
        said = self.docker("version", "--format", "{{.Server.Version}}").stdout
        return tuple(map(int, re.findall(r"\d+", said)[:3]))

    def docker(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Docker's client with this engine. Raises LabError on a non-zero exit code if `check`."""
        return self.host.namespace.run([program("docker"), "--host", self._socket, *words], check=check, timeout=60)

    def run(self, name: str, *options: str, network: str = "bridge", command: tuple[str, ...] = WAIT) -> Container:
        """Start a container; its address is the one in `network`, or 0.0.0.0 if it has none of its own."""
        self.docker(
            "run", "--detach", "--init=false", "--name", name, "--network", network, *options, "busybox", *command
        )
        state = json.loads(self.docker("inspect", name).stdout)[0]
        address = state["NetworkSettings"]["Networks"].get(network, {}).get("IPAddress")
        return self.host.inside(name, state["State"]["Pid"], address)

    def execute(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, whatever it comes to."""
        return self.docker("exec", name, *command, check=False)

    def logs(self, name: str) -> str:
        """What a container printed."""
        done = self.docker("logs", name)
        return done.stdout + done.stderr

    def create_network(self, name: str, *options: str) -> None:
        """Make a network. Raises LabError."""
        self.docker("network", "create", *options, name)

    def kill(self) -> None:
        """End dockerd with SIGKILL; containers and mounts stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self, timeout: float = 20) -> None:
        """End dockerd, which ends its containers; what resists is killed when the lab ends."""
        if self._process is None or self._process.poll() is not None:
            return
        if containers := self.docker("ps", "--all", "--quiet", check=False).stdout.split():
            self.docker("rm", "--force", *containers, check=False)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(patient(timeout))
        except subprocess.TimeoutExpired:
            self.kill()

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
