"""What an agent claims about its frames: that all earlier ones have arrived, or never will."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.whole_agent import Rig
from tests.unit.vm_agent.test_sender import Line
from vm_agent.completeness import STRAY_NS, Completeness, FormerRun
from vm_agent.spool import Outgoing


class Hand:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def test_a_claim_is_made_once_a_second_of_ticks() -> None:
    """The first one at once; one that did not arrive is made again with the next batch."""
    completeness = Completeness(Hand())
    assert completeness.claim(5000) == 5000
    assert completeness.claim(5100) == 5100
    completeness.claimed(5100)
    assert [completeness.claim(tick) for tick in (5200, 6000, 6100)] == [None, None, 6100]
    assert completeness.claim(-1) is None


def test_nothing_is_claimed_while_a_frame_that_was_given_up_may_be_on_its_way() -> None:
    """Each frame given up begins the time anew."""
    clock = Hand()
    completeness = Completeness(clock)
    completeness.doubt()
    clock.now_ns = STRAY_NS // 2
    completeness.doubt()
    clock.now_ns = STRAY_NS
    assert completeness.claim(0) is None
    clock.now_ns = STRAY_NS * 3 // 2
    assert completeness.claim(0) == 0


async def test_a_claim_waits_for_what_lies_in_the_spool(tmp_path: Path) -> None:
    """Frames out of it carry none; the first ones after them do."""
    line = Line(tmp_path)
    line.spool.append([Outgoing("old", b"x", 0)])
    line.offer(7, 8)
    await line.finish()
    assert line.outlet.stored == ["old", "m7", "m8"]
    assert [claim for claim, _ in line.outlet.claims] == [700]


async def test_frames_that_had_to_go_put_the_host_in_doubt(tmp_path: Path) -> None:
    """They may have been sent already."""
    line = Line(tmp_path, max_in_memory=3)
    line.offer(1, 2, 3, 4)
    await line.finish()
    assert line.outlet.stored == ["m2", "m3", "m4"]
    assert line.outlet.claims == []
    assert not await line.sender.put_away()


async def test_a_damaged_segment_puts_the_host_in_doubt(tmp_path: Path) -> None:
    """Its frames may have been sent already."""
    line = Line(tmp_path)
    line.spool.append([Outgoing("lost", b"x", 0)])
    min(tmp_path.iterdir()).write_bytes(b"\xc1garbage")
    line.offer(1)
    await line.finish()
    assert line.outlet.stored == ["m1"]
    assert line.outlet.claims == []


async def test_frames_that_the_disk_refuses_are_not_put_away(tmp_path: Path) -> None:
    """So the next run is told nothing."""
    line = Line(tmp_path / "spool")
    line.offer(1)
    (tmp_path / "spool").rmdir()
    assert not await line.sender.put_away()
    (tmp_path / "spool").mkdir()
    assert await line.sender.put_away()


def test_a_run_is_told_how_the_one_before_it_ended(tmp_path: Path) -> None:
    """Only of an end in order, and only once."""
    path = tmp_path / "settled"
    assert not FormerRun(path).take_over()
    FormerRun(path).settle()
    assert FormerRun(path).take_over()
    assert not FormerRun(path).take_over()


async def test_an_agent_claims_after_an_end_in_order_and_not_after_a_kill(tmp_path: Path) -> None:
    """A host without VMs claims like any other."""

    async def run(*, kill: bool) -> list[int]:
        agent = Rig(tmp_path)
        task = asyncio.create_task(agent.run(), name="agent")
        async with asyncio.timeout(10):
            await agent.started.wait()
            while len(agent.frames) < 3:
                await asyncio.sleep(0.01)
            agent.stop.set()
            await task
        if kill:
            (settled,) = tmp_path.rglob("frames-settled")
            settled.unlink()
        return agent.claims

    first = await run(kill=False)
    assert first
    second = await run(kill=True)
    assert second[0] > first[-1]
    assert await run(kill=False) == []
    assert await run(kill=False) == []
