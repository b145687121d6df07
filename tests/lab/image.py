"""What the engines' containers are made of: an image of the machine's static busybox. Nothing is pulled."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
APPLETS = ("httpd", "ping", "sh", "sleep", "wget")
PAGE = "served by a container\n"
WAIT = ("sleep", "600")
"""What a container does unless told otherwise; bounded, should nobody end it."""
SERVE = ("httpd", "-f", "-vv", "-p", "80", "-h", "/www")
"""Serve PAGE on port 80, and print who asked."""


def write_image(path: Path) -> Path:
    """Write an image's root directory as a tar: busybox, and a page to serve."""
    with tarfile.open(path, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        page = PAGE.encode()
        entry = tarfile.TarInfo("www/index.html")
        entry.size = len(page)
        tar.addfile(entry, io.BytesIO(page))
    return path
