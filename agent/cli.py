"""`flanneld-py`: from the command line to an exit code.

0   stopped by SIGTERM, SIGINT or SIGQUIT; --help, --version; --cleanup: nothing of ours is left
1   cannot go on: a file or port that cannot be used, an unexpected fault; --cleanup, --release: an agent runs, or
    something is left
2   wrong flags, variables or files named by them: one sentence on stderr says what to change
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from logging import ERROR
from typing import Never

from flanneld_py.agent import options as command_line
from flanneld_py.agent.flags import FLAGS
from flanneld_py.agent.log import in_journal, log, priority, set_up
from flanneld_py.agent.values import UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon and return its exit code."""
    # Until the daemon takes over: it is only being imported.
    signal.signal(signal.SIGTERM, _leave)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    try:
        options = command_line.parse(sys.argv[1:] if arguments is None else arguments, os.environ, _version)
    except command_line.Exit as wanted:
        print(wanted.text, file=sys.stderr)
        return 0
    except UsageError as error:
        _complain(error)
        return 2
    for flag in FLAGS:  # What we start (nft, a data plane that outlives us) need not know etcd's password.
        os.environ.pop(flag.variable, None)
    set_up(as_json=options.log_json, verbose=options.verbose)

    # Only now, so that help and a wrong flag are answered at once.
    import asyncio

    from flanneld_py.agent.daemon import Daemon, give_back, require_capability, stop_datapath
    from flanneld_py.agent.errors import FatalError
    from flanneld_py.agent.notify import Notifier

    async def run() -> None:
        if options.datapath_stop:
            await stop_datapath(options.subnet_file.parent)
        elif options.release:
            await give_back(options)
        elif options.cleanup:
            from flanneld_py.agent.cleanup import clean_up

            require_capability()
            await clean_up(options.subnet_file, print)
        else:
            await Daemon(options, Notifier(os.environ)).run()

    code = 0
    try:
        asyncio.run(run())
    except* UsageError as faults:
        _complain(faults.exceptions[0])
        code = 2
    except* FatalError as faults:
        log.critical(str(faults.exceptions[0]))
        code = 1
    return code


def _complain(error: Exception) -> None:
    print(f"{priority(ERROR) if in_journal() else ''}flanneld-py: {error}", file=sys.stderr)


def _leave(_number: int, _frame: object) -> Never:
    raise SystemExit(0)


def _version() -> str:
    from importlib.metadata import version  # Costs 15 ms.

    return f"flanneld-py {version('flanneld-py')}"
