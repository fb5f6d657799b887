"""Places: bounded, fair to customers, given on in order, never lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import Gate, Lane, lane_of
from gateway.errors import RefusedError
from schemas.errors import ErrorCode
from schemas.limits import RouteClass


async def test_who_finds_no_place_in_time_is_refused() -> None:
    """503 at once when the queue is full, and after the deadline for who queued."""
    gate = Gate(2, 0.05)
    first, second = await gate.enter("a"), await gate.enter("b")
    queued = [asyncio.create_task(gate.enter(name)) for name in "cd"]
    await asyncio.sleep(0)
    with pytest.raises(RefusedError) as refused:
        await gate.enter("e")
    assert (refused.value.code, refused.value.retry_after_s) == (ErrorCode.UNAVAILABLE, 1.0)
    for task in queued:
        with pytest.raises(RefusedError) as late:
            await task
        assert late.value.code is ErrorCode.UNAVAILABLE
    first.leave()
    second.leave()
    assert (gate.taken, gate.queued) == (0, 0)


async def test_a_place_goes_to_who_has_waited_longest() -> None:
    """And leaving twice gives it once."""
    gate = Gate(2, 5.0)
    first, _ = await gate.enter("a"), await gate.enter("b")
    third, fourth = (asyncio.create_task(gate.enter(name)) for name in "cd")
    await asyncio.sleep(0)
    first.leave()
    first.leave()
    place = await third
    assert not fourth.done()
    place.leave()
    await fourth
    assert gate.taken == 2


async def test_a_customer_gets_half_of_the_places() -> None:
    """Those that it waits for count as well; 429, because others have room."""
    gate = Gate(4, 5.0)
    held = [await gate.enter("greedy") for _ in range(2)]
    with pytest.raises(RefusedError) as refused:
        await gate.enter("greedy")
    assert refused.value.code is ErrorCode.RATE_LIMITED
    await gate.enter("modest")
    held[0].leave()
    await gate.enter("greedy")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["enter", "leave", "cancel"]))))
def test_no_place_is_ever_lost(steps: list[tuple[str, str]]) -> None:
    """Whatever ends while it waits, or in the very moment of its turn."""

    async def run() -> None:
        gate = Gate(4, 0.001)
        tasks = []
        for name, step in steps:
            if step == "enter":
                tasks.append(asyncio.create_task(gate.enter(name)))
            elif tasks and step == "cancel":
                tasks[-1].cancel()
            for task in tasks[:1] if step == "leave" else []:
                if task.done() and not task.cancelled() and task.exception() is None:
                    task.result().leave()
                    tasks.remove(task)
            await asyncio.sleep(0)
            assert gate.taken <= 4
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and task.exception() is None:
                task.result().leave()
        assert (gate.taken, gate.queued) == (0, 0)
        assert not gate._held

    asyncio.run(run())


def test_only_mutations_wait_in_a_lane_of_their_own() -> None:
    """A read that says so keeps its lane."""
    assert lane_of(RouteClass.MUTATIONS, waits=True) is Lane.WAITING
    assert lane_of(RouteClass.MUTATIONS, waits=False) is Lane.MUTATIONS
    assert lane_of(RouteClass.READS, waits=True) is Lane.READS
