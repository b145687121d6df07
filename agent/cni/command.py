"""`flannel-py`: the CNI plugin. From environment and standard input to an answer and an exit code.

    CNI_COMMAND=ADD ... flannel-py < network configuration    ->  a result or an error, JSON, on standard output
    flannel-py setup NETNS < container                        ->  netavark.py: so is it called by podman 5
    flannel-py --install DIR                                  ->  DIR/flannel-py, which starts in half the time

CNI runs plugins without arguments, netavark never does: what else is in the environment decides nothing.

0   done
1   not done: the error says why
2   wrong arguments

It is started for every container, so it imports the standard library's cheap parts and nothing of the daemon but
subnetfile.py; a test holds that.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flanneld_py.agent.cni.conf import netconf
from flanneld_py.agent.cni.delegate import Delegates
from flanneld_py.agent.cni.plugin import Plugin, supported
from flanneld_py.agent.cni.spec import NEWEST, VERSIONS, CniError, Code, Json, request
from flanneld_py.agent.subnetfile import replace

USAGE = """\
flannel-py is a plugin for CNI and for netavark (podman 5), run by container engines.
Usage: flannel-py --install DIR (e.g. /opt/cni/bin, /usr/lib/netavark)
"""
# netavark.py's, which is not imported for CNI.
NETAVARK = ("create", "setup", "teardown", "info")

# Without `site` (-S) Python starts in a third of the time, but finds no installed package: hence the path by hand.
# For one short call, collecting garbage and taking the interpreter down would be a fifth of the time.
LAUNCHER = """\
#!{python} -IS
import gc

gc.disable()

import os
import sys
from types import ModuleType

for name, path in (("flanneld_py", []), ("flanneld_py.agent", [{agent!r}])):
    package = sys.modules[name] = ModuleType(name)
    package.__path__ = path

from flanneld_py.agent.cni.command import main

code = main()
sys.stdout.flush()
os._exit(code)
"""


def main() -> int:
    """Answer one call and return the exit code."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in NETAVARK:
        from flanneld_py.agent.cni import netavark

        code, answer = netavark.call(arguments, sys.stdin.buffer.read, os.environ)
    elif arguments or "CNI_COMMAND" not in os.environ:
        return _without_runtime(arguments)
    else:
        code, answer = call(os.environ, sys.stdin.buffer.read())
    if answer is not None:
        sys.stdout.write(json.dumps(answer) + "\n")
    return code


def call(environment: Mapping[str, str], stdin: bytes) -> tuple[int, Json | None]:
    """Answer one call; return the exit code and what is to be printed, if anything."""
    version = NEWEST
    try:
        asked = request(environment, stdin)
        if asked.command == "VERSION":
            return 0, supported(asked.version, VERSIONS)
        version = asked.version
        return 0, Plugin(asked, netconf(asked.conf), Delegates(asked.path, environment)).answer()
    except CniError as error:
        return 1, error.answer(version)
    except OSError as error:
        return 1, CniError(Code.IO, str(error)).answer(version)


def _without_runtime(arguments: Sequence[str]) -> int:
    match arguments:
        case ["--install", directory]:
            try:
                sys.stdout.write(f"{install(Path(directory))}\n")
            except OSError as error:
                sys.stderr.write(f"flannel-py: cannot install: {error}\n")
                return 1
            return 0
        case ["--help"]:
            sys.stdout.write(USAGE)
            return 0
        case _:
            sys.stderr.write(USAGE)
            return 2


def install(directory: Path) -> Path:
    """Write the plugin's quick launcher, for this Python and this installation, and return it. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / "flannel-py"
    agent = str(Path(__file__).resolve().parents[1])
    replace(target, LAUNCHER.format(python=sys.executable, agent=agent), 0o755)
    return target
