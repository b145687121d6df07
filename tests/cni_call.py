"""A runtime's calls of the CNI plugin, in a process of their own, and a delegate that is a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.patience import patient

PLUGIN = Path(sys.executable).parent / "flannel-py"

DELEGATE = """#!{python} -IS
import json, os, sys

conf = json.load(sys.stdin)
command = os.environ["CNI_COMMAND"]
asked = {{name: value for name, value in os.environ.items() if name.startswith("CNI_")}}
with open({calls!r}, "a") as calls:
    calls.write(json.dumps([command, asked, conf]) + "\\n")
code, answer = json.load(open({answers!r})).get(command, [0, None])
if answer is not None:
    print(answer if isinstance(answer, str) else json.dumps(answer))
sys.exit(code)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call came to; `said` is its JSON, {} if it printed nothing."""

    code: int
    said: dict[str, Any]
    stderr: str

    @property
    def error(self) -> tuple[int, str]:
        """The CNI error's code and message."""
        return self.said["code"], self.said["msg"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Who calls: the network's configuration, where the plugins are, and how to get to the host's namespace."""

    conf: Mapping[str, object]
    path: str
    enter: Sequence[str] = ()
    plugin: Path = PLUGIN
    environment: Mapping[str, str] = field(default_factory=dict)

    def call(self, command: str, container: str = "c1", **more: object) -> Answer:
        """Call the plugin; `more` goes into the configuration, `netns` and `ifname` into the environment."""
        netns = str(more.pop("netns", f"/run/netns/{container}"))
        ifname = str(more.pop("ifname", "eth0"))
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": ifname,
            "CNI_PATH": self.path,
        }
        done = subprocess.run(
            [*self.enter, self.plugin],
            input=json.dumps({**self.conf, **more}),
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], **variables, **self.environment},
            timeout=patient(60),
            check=False,
        )
        return Answer(done.returncode, json.loads(done.stdout or "{}"), done.stderr)


class FakeDelegate:
    """A plugin of a given name that answers what it is told to, and keeps what it was asked."""

    def __init__(self, directory: Path, name: str) -> None:
        self._answers = directory / f"{name}.answers"
        self._calls = directory / f"{name}.calls"
        self._told: dict[str, tuple[int, object]] = {}
        script = directory / name
        text = DELEGATE.format(python=sys.executable, calls=str(self._calls), answers=str(self._answers))
        script.write_text(text)
        script.chmod(0o755)
        self.says("VERSION", {"supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]})

    def says(self, command: str, answer: object, code: int = 0) -> None:
        """Answer `command` with this from now on."""
        self._told[command] = (code, answer)
        self._answers.write_text(json.dumps(self._told))

    def asked(self) -> list[tuple[str, dict[str, str], dict[str, Any]]]:
        """The calls until now but VERSION: command, CNI variables, configuration."""
        if not self._calls.exists():
            return []
        calls = [json.loads(line) for line in self._calls.read_text().splitlines()]
        return [(command, variables, conf) for command, variables, conf in calls if command != "VERSION"]
