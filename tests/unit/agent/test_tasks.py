from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Never

import pytest

from flanneld_py.agent.tasks import Ended, Tasks


async def forever() -> Never:
    await asyncio.Event().wait()
    raise AssertionError


async def run(*work: Coroutine[Any, Any, Any]) -> None:
    async with asyncio.timeout(5), Tasks() as tasks:
        for number, each in enumerate(work):
            tasks.create_task(each, name=f"number {number}")


async def test_a_cancellation_out_of_a_library_ends_all() -> None:
    """As grpc raises it when its channel is closed."""

    async def keeper() -> Never:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future
        raise AssertionError

    with pytest.raises(ExceptionGroup) as raised:
        await run(forever(), keeper())
    (error,) = raised.value.exceptions
    assert isinstance(error, Ended)
    assert str(error) == "the task number 1 was cancelled, and nobody asked for it"


async def test_a_task_that_returns_ends_all() -> None:
    async def done() -> None:
        return

    with pytest.raises(ExceptionGroup) as raised:
        await run(done(), forever())
    assert [str(error) for error in raised.value.exceptions] == ["the task number 0 has ended, and nobody asked for it"]


async def test_an_error_comes_out_as_it_is() -> None:
    async def fail() -> Never:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        await run(forever(), fail())
    assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError]


@pytest.mark.parametrize("after", [0.0, 0.01])
async def test_who_is_asked_to_end_ends_without_a_word(after: float) -> None:
    async with asyncio.timeout(5), asyncio.TaskGroup() as outer:
        running = outer.create_task(run(forever(), forever()))
        await asyncio.sleep(after)
        running.cancel()
    assert running.cancelled()
