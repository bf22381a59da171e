"""Corners of running that no clock can be set to hit from outside."""

import asyncio
from uuid import uuid4

from tasklib.models import Claimed
from tasklib.registry import Registry
from tasklib.worker.context import Run
from tasklib.worker.execute import Executor
from tasklib.worker.outcome import Outcome


async def test_a_task_that_is_interrupted_before_its_first_step_ends() -> None:
    registry, settled, freed = Registry(), list[tuple[Run, Outcome]](), list[Run]()

    @registry.task(name="app.work")
    async def work() -> None: ...

    claimed = Claimed(str(uuid4()), 1, work.name, "default", "{}", 0, 3, None, None, None)
    run = Run(claimed, str(uuid4()), stop_reason="cancel")
    executor = Executor(registry, lambda *ended: settled.append(ended), freed.append)
    executor.start(run)
    executor.interrupt(run)
    for _ in range(3):
        await asyncio.sleep(0)

    assert freed == [run]
    assert [(ended, outcome.state) for ended, outcome in settled] == [(run, "cancelled")]
