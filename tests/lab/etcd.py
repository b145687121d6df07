"""A real etcd server as a subprocess: started, stopped, frozen, wiped and started again on the same ports.

Not a cluster manager: three members are three EtcdServers whose `extra` names the cluster, started with
`start(wait=False)` and then waited for one by one.

    start -> wait_ready -> (freeze, thaw, kill, stop, wipe, start again ...) -> stop

Start it from a thread that lives as long as it should: the kernel kills the server when that thread ends, so that
nothing is left of an interrupted test run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.lab.programs import program
from tests.patience import patient, within

_READY_SECONDS = 20.0
_STOP_SECONDS = 10.0


class EtcdServer:
    """One etcd process. Used as a context manager it is started on entry and gone on exit.

    `cert` and `key` make it serve TLS; `ca` is what `ctl` verifies it with, and with
    `require_client_certificate` also what it verifies clients with (`ctl` then shows the server's certificate, which
    needs the clientAuth usage). `namespace` is a network namespace by name. The log is `<name>.log` beside `data_dir`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        name: str = "etcd",
        listen: str = "127.0.0.1",
        client_port: int | None = None,
        peer_port: int | None = None,
        namespace: str | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        ca: Path | None = None,
        require_client_certificate: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self.name = name
        self.log = data_dir.parent / f"{name}.log"
        self.client_port = free_port() if client_port is None else client_port
        self.peer_port = free_port() if peer_port is None else peer_port
        self.endpoint = f"{'https' if cert else 'http'}://{listen}:{self.client_port}"
        self.peer_url = f"http://{listen}:{self.peer_port}"
        self._inside = ("ip", "netns", "exec", namespace) if namespace else ()
        self._tls = (cert, key, ca, require_client_certificate)
        self._extra = tuple(extra)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server. Raises RuntimeError if there is none."""
        if self._process is None:
            raise RuntimeError(f"etcd {self.name} is not running; call start() first")
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Start the server and return when it answers. Raises RuntimeError with the end of its log otherwise."""
        if self._process is not None:
            raise RuntimeError(f"etcd {self.name} is running already (pid {self.pid})")
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the server answers and knows a leader. Raises RuntimeError and stops it if that takes too long."""
        deadline = within(_READY_SECONDS)
        while not self._has_leader():
            exited = self._process is None or self._process.poll() is not None
            if exited or time.monotonic() > deadline:
                self.kill()
                what = "exited" if exited else f"did not answer within {patient(_READY_SECONDS):.0f} s"
                raise RuntimeError(f"etcd {self.name} at {self.endpoint} {what}; its log ends:\n{self._log_tail()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server with SIGTERM, as a service manager would; no error if it is not running."""
        if self._process is not None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patient(_STOP_SECONDS))
            self.kill()

    def kill(self) -> None:
        """End the server with SIGKILL; no error if it is not running."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the process where it is: its sockets stay open and nobody answers."""
        self._signal(signal.SIGSTOP)
        # The signal takes its time to reach all threads; nobody is to be answered after this returns.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self._signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Delete all data. The server must not be running; started again it is a new, empty cluster."""
        if self._process is not None:
            raise RuntimeError(f"etcd {self.name} is running (pid {self.pid}); stop it before wiping its data")
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def ctl(self, *args: str, stdin: bytes | None = None, timeout: float = 10.0) -> str:
        """Run etcdctl against this server and return what it prints.

        `timeout` in seconds. Raises RuntimeError with its error output if it fails.
        """
        cert, key, ca, mutual = self._tls
        command = [*self._inside, program("etcdctl"), f"--endpoints={self.endpoint}"]
        # etcdctl's own deadlines are 2 and 5 seconds; what `args` say comes later and counts.
        command += [f"--dial-timeout={patient(2):g}s", f"--command-timeout={patient(5):g}s"]
        command += [f"--cacert={ca}"] if ca else []
        command += [f"--cert={cert}", f"--key={key}"] if mutual else []
        done = subprocess.run(
            [*command, *args],
            input=b"" if stdin is None else stdin,
            capture_output=True,
            env={**os.environ, "ETCDCTL_API": "3"},
            timeout=patient(timeout),
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"etcdctl {' '.join(args)} failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def __enter__(self) -> EtcdServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        cert, key, ca, mutual = self._tls
        command = [*self._inside, "setpriv", "--pdeathsig", "KILL", "--", program("etcd")]
        command += [f"--name={self.name}", f"--data-dir={self.data_dir}"]
        command += [f"--listen-client-urls={self.endpoint}", f"--advertise-client-urls={self.endpoint}"]
        command += [f"--listen-peer-urls={self.peer_url}", f"--initial-advertise-peer-urls={self.peer_url}"]
        command += [f"--initial-cluster={self.name}={self.peer_url}"]
        command += ["--logger=zap", "--log-outputs=stderr", "--log-level=warn"]
        # etcd's shortest lease is one and a half election timeouts, rounded up: with this one second, not two.
        command += ["--heartbeat-interval=100", "--election-timeout=500"]
        command += [f"--cert-file={cert}", f"--key-file={key}"] if cert else []
        command += [f"--trusted-ca-file={ca}", "--client-cert-auth"] if mutual else []
        # Killed processes lose nothing without fsync; only power failures do.
        return [*command, "--unsafe-no-fsync", *self._extra]

    def _has_leader(self) -> bool:
        # Not etcdctl: while users have to log in, etcd from 3.5.30 on tells its status to nobody else.
        cert, key, ca, mutual = self._tls
        command = [*self._inside, "curl", "--silent", "--noproxy", "*", "--max-time", f"{patient(1)}"]
        command += ["--cacert", str(ca)] if ca else []
        command += ["--cert", str(cert), "--key", str(key)] if mutual else []
        command += [f"{self.endpoint}/health"]
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout
        with suppress(ValueError):
            return bool(json.loads(answer).get("health") == "true")
        return False

    def _signal(self, number: signal.Signals) -> None:
        # Popen.send_signal looks first whether the process has ended, so a reused pid is never hit.
        if self._process is not None:
            self._process.send_signal(number)

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


class EtcdProxy:
    """etcd's own gRPC proxy before a server, as a context manager. `endpoint` is its own, without TLS."""

    def __init__(self, server: EtcdServer, *, name: str = "proxy") -> None:
        self.log = server.log.with_name(f"{name}.log")
        address = f"127.0.0.1:{free_port()}"
        self.endpoint = f"http://{address}"
        self._command = [
            *("setpriv", "--pdeathsig", "KILL", "--", program("etcd"), "grpc-proxy", "start"),
            *(f"--endpoints={server.endpoint}", f"--listen-addr={address}", f"--advertise-client-url={address}"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EtcdProxy:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = within(_READY_SECONDS)
        host, _, port = self.endpoint.removeprefix("http://").partition(":")
        while True:
            try:
                with socket.create_connection((host, int(port)), 1.0):
                    return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__(None, None, None)
                    raise RuntimeError(f"no gRPC proxy at {self.endpoint}; its log: {self.log}") from None
                time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    """Find a free TCP port on loopback.

    It lies below the ephemeral range: a client that dials a stopped server on an ephemeral port can end up
    connected to itself and so take the port away from the server.
    """
    chooser = random.SystemRandom()
    while True:
        port = chooser.randrange(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
