"""TCP between two stations through iperf3, with one stream or several in one iperf3."""

from __future__ import annotations

import select
import subprocess
import time

from tests.lab.measure import Station, parse_iperf
from tests.lab.namespace import LabError

PORT = 5201


def streams(source: Station, target: Station, count: int, seconds: int) -> float:
    """Send `count` streams for `seconds`; return what arrived of all together in Gbit/s. Raises LabError."""
    server = target.namespace.popen(
        ["iperf3", "--server", "--one-off", "--forceflush", "--bind", str(target.address), "--port", str(PORT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_listening(server)
        client = ["iperf3", "--client", str(target.address), "--port", str(PORT), "--time", str(seconds), "--json"]
        done = source.namespace.run([*client, "--parallel", str(count)], check=False, timeout=seconds + 15)
    finally:
        server.kill()
        server.communicate()
    try:
        return parse_iperf(done.stdout)
    except ValueError as error:
        raise LabError(f"iperf3 from {source.name} to {target.name} with {count} streams: {error}") from error


def _wait_listening(server: subprocess.Popen[bytes], timeout: float = 5) -> None:
    assert server.stdout is not None
    said, deadline = b"", time.monotonic() + timeout
    while b"Server listening" not in said:
        readable, _, _ = select.select([server.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = server.stdout.read(4096) if readable else b""
        if not chunk:
            raise LabError(f"iperf3 does not listen: {said.decode().strip() or 'it said nothing'}")
        said += chunk
