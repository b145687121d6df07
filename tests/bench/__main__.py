"""`python -m tests.bench`: measure, print a table, write JSON and a picture.

    arguments -> root? -> each benchmark, with progress -> table -> tests/bench/results/<date-time>.json and .svg

Exit codes: 0 measured, whatever came out; 1 something could not be measured (the rest is shown all the same), or
Ctrl-C; 2 wrong arguments, or not root.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType

from tests.bench import (
    bursts,
    hostgw,
    idle,
    joins,
    latency,
    load,
    machine,
    plugin,
    recheck,
    repair,
    start,
    throughput,
    userspace,
)
from tests.bench.chart import chart
from tests.bench.figures import GOAL_PEERS, OURS, Daemon, Figure, Setting
from tests.bench.paths import FLANNEL_UDP, PATHS
from tests.bench.peers import MOST
from tests.bench.report import document, table
from tests.bench.underlay import Underlay, underlays
from tests.lab.lab import DEFAULT_FLANNELD
from tests.lab.namespace import LabError

BENCHMARKS: dict[str, Callable[[Setting], Iterator[Figure]]] = {
    "load": load.run,
    "joins": joins.run,
    "latency": latency.run,
    "repair": repair.run,
    "recheck": recheck.run,
    "start": start.run,
    "plugin": plugin.run,
    "idle": idle.run,
    "throughput": throughput.run,
    "hostgw": hostgw.run,
    "userspace": userspace.run,
    "bursts": bursts.run,
}
PATH_NAMES = ", ".join(path.name for path in PATHS)
ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    if unknown := set(options.only) - {path.name for path in PATHS}:
        parser.error(f"no packet path {', '.join(sorted(unknown))}: there are {PATH_NAMES}")
    if FLANNEL_UDP.name in options.only and options.flanneld is None:
        parser.error(f"the packet path {FLANNEL_UDP.name} is another daemon's: give it with --flanneld")
    if options.rounds < 1 or not 1 <= options.peers <= MOST:
        parser.error(f"expected 1 round or more and 1 to {MOST} peers")
    for package in ("agent", "encap", "registry"):
        # What is installed comes compiled; in a checkout the environment may forbid Python to keep it.
        compileall.compile_dir(ROOT / package, quiet=1)
    daemons = [Daemon(OURS, DEFAULT_FLANNELD)]
    if options.flanneld is not None:
        name = options.flanneld.name
        daemons.append(Daemon(f"other {name}" if name == OURS else name, options.flanneld.resolve()))
    for daemon in daemons:
        if shutil.which(daemon.path) is None:
            parser.error(f"{daemon.path} is no executable")
    if os.geteuid() != 0:
        parser.error("the benchmarks make network namespaces and need root: run them with sudo")
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    setting = Setting(
        options.rounds,
        options.peers,
        tuple(daemons),
        say=lambda line: print(f"    {line}", flush=True),
        only=options.only,
        underlays=options.underlay,
    )
    return _measure(options.names or list(BENCHMARKS), setting, options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure the daemon.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="samples of most figures (default 5)")
    parser.add_argument(
        "--peers", type=int, default=GOAL_PEERS, metavar="N", help=f"size of the large cluster (default {GOAL_PEERS})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write, the picture beside it as .svg")
    parser.add_argument(
        "--flanneld", "--peer-flanneld", type=Path, metavar="PATH", help="another daemon, measured beside ours"
    )
    parser.add_argument(
        "--only",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="NAME,...",
        help=f"the packet paths that `userspace` and `bursts` measure: {PATH_NAMES} (default all)",
    )
    parser.add_argument(
        "--underlay",
        type=underlays,
        default=tuple(Underlay),
        metavar="KIND,...",
        help="where `throughput` and `userspace` measure: lab, nic (no offloads for tunnels) (default both)",
    )
    return parser


def _stop(number: int, frame: FrameType | None) -> None:
    # From here on only the clean-up runs, and it cannot be interrupted again.
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _measure(names: Sequence[str], setting: Setting, target: Path | None) -> int:
    began = time.perf_counter()
    about = {
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine.facts(setting.daemons),
    }
    if others := machine.namespaces():
        # The kernel configures one namespace at a time; waiting for another one's removal shows as hundreds of ms.
        print(f"bench: there are {others} network namespaces already: whatever works in them disturbs the figures")
    figures: list[Figure] = []
    code = 0
    try:
        for name in names:
            print(f"{time.perf_counter() - began:6.1f} s  {name}", flush=True)
            try:
                figures.extend(BENCHMARKS[name](setting))
            except (LabError, TimeoutError) as error:
                print(f"bench: {name}: {error}", file=sys.stderr, flush=True)
                code = 1
    except KeyboardInterrupt:
        print("stopped; what was measured until now:", file=sys.stderr)
        code = 1
    seconds = round(time.perf_counter() - began, 1)
    print(f"{seconds:6.1f} s  together\n\n{table(figures)}\n", flush=True)
    if figures:
        asked = {"rounds": setting.rounds, "peers": setting.peers, "seconds": seconds}
        _write(target or RESULTS / f"{datetime.now():%Y-%m-%d-%H%M%S}.json", figures, {**about, **asked})
    return code


def _write(target: Path, figures: Sequence[Figure], about: dict[str, object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(document(figures, about))
    print(target)
    if picture := chart(figures, OURS):
        target.with_suffix(".svg").write_text(picture)
        print(target.with_suffix(".svg"))


if __name__ == "__main__":
    sys.exit(main())
