"""Whether the agent in this container is ready: exit code 0, or 1 and why. For the engine's health check.

It asks the health server, which the image turns on by variables; whoever moves it does it by these, too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from os import environ

SECONDS = 3.0


def server(environment: Mapping[str, str]) -> tuple[str, int]:
    """Find address and port of the health server. Raises KeyError, ValueError."""
    address = ip_address(environment["FLANNELD_HEALTHZ_IP"])
    if address.is_unspecified:
        address = ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"{address}", int(environment["FLANNELD_HEALTHZ_PORT"])


def main() -> int:
    """Ask; write the answer to stdout."""
    try:
        connection = HTTPConnection(*server(environ), timeout=SECONDS)
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        sys.stdout.write(answer.read(200).decode() + "\n")
    except (OSError, HTTPException, KeyError, ValueError) as error:
        sys.stdout.write(f"the health server does not answer: {error!r}\n")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
