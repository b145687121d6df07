"""A task group in which nothing ends unasked.

asyncio's own drops a child that was cancelled without a word, also if nobody cancelled it: a library whose own future
was cancelled (grpc, when its channel is closed) raises the same CancelledError. The agent would go on without its
Keeper.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, Never


class Ended(Exception):
    """A task has ended that goes on for good."""


class Tasks(asyncio.TaskGroup):
    """See the module's docstring. What its tasks raise comes out as of any TaskGroup."""

    def create_task(  # type: ignore[override]  # Generators are no tasks here.
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Never]:
        """Start a task that must not return. Its end, unless it is cancelled or raises, is Ended."""
        task = super().create_task(_endless(coro, name or "without a name"), name=name, context=context)
        task.add_done_callback(lambda _: coro.close())  # It may have been cancelled before it began.
        return task


async def _endless(work: Coroutine[Any, Any, Any], name: str) -> Never:
    try:
        await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Ended(f"the task {name} was cancelled, and nobody asked for it") from error
    raise Ended(f"the task {name} has ended, and nobody asked for it")
