"""An agent reduced to its Supervisor, as a process that can be killed: `python -m tests.netns.feeder <json>`.

It sets up the device as the agent would, feeds the peers given, and says on stdout `fed <pid of the process>` whenever
a process has taken all of it, also if it is the same one again, with another device.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from flanneld_py.agent.clock import SystemClock
from flanneld_py.agent.datapath.client import start_process
from flanneld_py.agent.datapath.supervise import Supervisor
from tests.netns.userspace import End, configuration, device_lines, peer


async def main(arguments: dict[str, Any]) -> None:
    own, *others = (End.parse(text) for text in arguments["ends"])

    async def prepared() -> None:
        process = await asyncio.create_subprocess_exec("ip", "-batch", "-", stdin=asyncio.subprocess.PIPE)
        await process.communicate("".join(line + "\n" for line in device_lines(own, others)).encode())

    supervisor = Supervisor(
        Path(arguments["control"]),
        start_process,
        prepared,
        configuration(own),
        SystemClock(),
        Random(1),
        patience=1,
        probe_every=0.2,
    )
    supervisor.update((str(end.subnet), peer(end)) for end in others)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run())
        while True:
            await supervisor.fed.wait()
            while supervisor.status is None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            print("fed", supervisor.status.pid, flush=True)
            while supervisor.fed.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            supervisor.status = None


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
