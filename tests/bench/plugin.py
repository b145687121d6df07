"""The CNI plugin starts.

    exec -> the answer to VERSION -> exit

By the launcher that `flannel-py --install` writes, by pip's own script, and Python alone in both ways, in turns. It is
what the plugin adds to the time of each container's start: all else is the delegate's work.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flanneld_py.agent.cni.command import install
from tests.bench.figures import Figure, Goal, Setting

GOAL = Goal(50)
STARTS = 4
"""For each round: one takes milliseconds, so a few more cost nothing."""


def run(setting: Setting) -> Iterator[Figure]:
    """Measure the plugin of this installation."""
    script = Path(sys.executable).parent / "flannel-py"
    with tempfile.TemporaryDirectory() as directory:
        ways: dict[str, Sequence[str | Path]] = {
            "the launcher": [install(Path(directory))],
            "pip's script": [script],
            "python -IS alone": [sys.executable, "-IS", "-c", ""],
            "python alone": [sys.executable, "-c", ""],
        }
        samples: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(setting.rounds):
            for name in ways:
                samples[name] += [_start(ways[name]) for _ in range(STARTS)]
            setting.say(", ".join(f"{name} {taken[-1]:.1f} ms" for name, taken in samples.items()))
    for name, taken in samples.items():
        goal = GOAL if name == "the launcher" else None
        yield Figure("plugin", f"CNI plugin starts: {name}", setting.ours.name, "ms", tuple(taken), goal)


def _start(argv: Sequence[str | Path]) -> float:
    began = time.perf_counter()
    environment = {"CNI_COMMAND": "VERSION"}
    subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000
