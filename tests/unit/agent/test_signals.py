from __future__ import annotations

import asyncio
import os
import signal

import pytest

from flanneld_py.agent.log import TextFormatter
from flanneld_py.agent.signals import ENDS, MEAN_NOTHING, Stopped, stop_on_signal


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [TextFormatter(timestamps=False).format(record) for record in caplog.records]


@pytest.mark.parametrize("number", ENDS)
async def test_an_end_that_was_asked_for_is_said_with_who_asked(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flanneld-py")
    task = asyncio.ensure_future(stop_on_signal())
    await asyncio.sleep(0)
    os.kill(os.getpid(), number)
    with pytest.raises(Stopped):
        await task
    assert len(said(caplog)) == 1
    assert said(caplog)[0].startswith("INFO stopping")
    assert said(caplog)[0].endswith(f"signal={number.name}")
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler), "a second one ends it at once"


async def test_others_end_nothing_and_are_answered(caplog: pytest.LogCaptureFixture) -> None:
    """systemd does not start again what SIGHUP ended."""
    caplog.set_level("INFO", "flanneld-py")
    task = asyncio.ensure_future(stop_on_signal())
    await asyncio.sleep(0)
    try:
        for count, number in enumerate(MEAN_NOTHING, 1):
            os.kill(os.getpid(), number)
            while len(said(caplog)) < count:
                assert not task.done()
                await asyncio.sleep(0)
            assert said(caplog)[-1].endswith(f"signal={number.name}")
        assert {number.name for number in MEAN_NOTHING} == {"SIGHUP", "SIGUSR1", "SIGUSR2"}
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            await task
        for number in MEAN_NOTHING:
            asyncio.get_running_loop().remove_signal_handler(number)
