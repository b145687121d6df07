"""One agent process on a host: flanneld-py, or any daemon with flannel's command line.

What it is given is flannel's: etcd, interface, subnet file, health port. Ready means READY=1 on NOTIFY_SOCKET,
which flannel's own daemon sends as well. Standard output and error go to agent.log, runs one after another.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.namespace import LabError, Namespace
from tests.patience import patient, within

HEALTH_PORT = 8081
"""On 127.0.0.1 of the host's namespace."""


class Agent:
    """An agent that can be started, stopped and killed as often as needed."""

    def __init__(self, name: str, namespace: Namespace, directory: Path, argv: Sequence[str]) -> None:
        self.name = name
        self.log = directory / "agent.log"
        self.subnet_file = directory / "subnet.env"
        self._namespace = namespace
        self._socket_path = directory / "notify"
        health = ["--healthz-ip", "127.0.0.1", "--healthz-port", str(HEALTH_PORT)]
        self._argv = [*argv, "--subnet-file", str(self.subnet_file), *health]
        self._arguments: tuple[str, ...] = ()
        self._env: Mapping[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = False

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id. Raises LabError if it was never started."""
        return self._started().pid

    @property
    def exit_code(self) -> int | None:
        """The code that it ended with; None while it runs. Raises LabError if it was never started."""
        return self._started().poll()

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Start it, with further arguments and environment. Raises LabError if it runs already."""
        if self.alive:
            raise LabError(f"agent {self.name} runs already, as process {self.pid}")
        self.close()
        self._arguments, self._env, self._ready = arguments, env or {}, False
        self._socket_path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._socket_path))
        environment = {**os.environ, **self._env, "NOTIFY_SOCKET": str(self._socket_path)}
        with self.log.open("ab") as log:
            self._process = self._namespace.popen(
                [*self._argv, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def wait_ready(self, timeout: float = 20) -> None:
        """Wait until it says READY=1. Raises LabError, with the end of its log, if it ends or takes longer."""
        process, deadline = self._started(), within(timeout)
        if self._socket is None:
            raise LabError(f"agent {self.name} was stopped: start it first")
        process_fd = os.pidfd_open(process.pid)
        try:
            while not self._ready and (left := deadline - time.monotonic()) > 0:
                readable, _, _ = select.select([self._socket.fileno(), process_fd], [], [], left)
                if self._socket.fileno() in readable:
                    self._ready = b"READY=1" in self._socket.recv(4096).splitlines()
                elif readable:
                    raise LabError(f"agent {self.name} ended with exit code {process.wait()}:\n{self.log_tail()}")
        finally:
            os.close(process_fd)
        if not self._ready:
            raise LabError(f"agent {self.name} was not ready within {patient(timeout):g} s:\n{self.log_tail()}")

    def terminate(self, timeout: float = 10) -> int:
        """End it with SIGTERM and return its exit code. Raises LabError, and kills it, if that takes longer."""
        process = self._started()
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(patient(timeout))
        except subprocess.TimeoutExpired as error:
            raise LabError(f"agent {self.name} did not end within {patient(timeout):g} s of SIGTERM") from error
        finally:
            self.close()

    def kill(self) -> None:
        """End it with SIGKILL; one that does not run is no error."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self, timeout: float = 10) -> None:
        """Terminate it and start it with the same arguments and environment; does not wait until it is ready."""
        self.terminate(timeout)
        self.start(*self._arguments, env=self._env)

    def close(self) -> None:
        """Kill it if it runs and let go of its socket."""
        self.kill()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def subnet_env(self) -> dict[str, str]:
        """Read the subnet file. Raises LabError if there is none."""
        try:
            text = self.subnet_file.read_text()
        except FileNotFoundError as error:
            raise LabError(f"agent {self.name} wrote no {self.subnet_file}:\n{self.log_tail()}") from error
        return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise LabError(f"agent {self.name} was never started")
        return self._process
