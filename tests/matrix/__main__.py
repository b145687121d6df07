"""`python -m tests.matrix kernels|releases`: see tests/matrix/__init__.py.

Exit codes: 0 all tests passed everywhere; 1 one failed or was not reached, or something could not be had; 2 wrong
arguments, not root, or a tool is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Collection, Sequence

from tests.matrix import kernels, releases, table
from tests.matrix.debian import RELEASES, ROOT, MatrixError

MATRICES = {"kernels": kernels, "releases": releases}
TOOLS = {
    "kernels": {
        "qemu-system-x86_64": "qemu-system-x86",
        "busybox": "busybox-static",
        "cpio": "cpio",
        "depmod": "kmod",
    },
    "releases": {"mmdebstrap": "mmdebstrap", "rsync": "rsync"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description="The tests in other surroundings.")
    parser.add_argument("what", choices=sorted(MATRICES))
    parser.add_argument("--in", dest="where", metavar="A,B", help=f"of {','.join(RELEASES)} (default: all)")
    parser.add_argument("--groups", metavar="A,B", help="groups of tests (default: all)")
    options = parser.parse_args(arguments)
    matrix = MATRICES[options.what]
    where, groups = _chosen(parser, options.where, RELEASES), _chosen(parser, options.groups, matrix.GROUPS)
    if os.geteuid() != 0:
        parser.error("it needs root: run it with sudo")
    for tool, package in TOOLS[options.what].items():
        if shutil.which(tool) is None:
            parser.error(f"{tool} is not installed: apt install {package}")
    build = ROOT / "build" / options.what
    build.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        head, rows, good = matrix.test(where, groups, build)
    except MatrixError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    used = os.times()
    minutes = (time.monotonic() - began) / 60
    said = f"{time.strftime('%Y-%m-%d')}, {minutes:.0f} minutes, "
    said += f"{(used.children_user + used.children_system) / 60:.0f} of processor time"
    print(f"\n{table.text(head, rows)}\n{said}; as markdown: {build}/table.md")
    (build / "table.md").write_text(f"{said}\n\n{table.markdown(head, rows)}")
    return 0 if good else 1


def _chosen(parser: argparse.ArgumentParser, asked: str | None, known: Collection[str]) -> list[str]:
    """What of all there is, in its order: the last kernel is the newest."""
    names = asked.split(",") if asked else list(known)
    for name in names:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    return [name for name in known if name in names]


if __name__ == "__main__":
    sys.exit(main())
