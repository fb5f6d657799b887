"""Frames on their way: none lost, bounds kept, order kept, whatever NATS does."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import PoisonError, TransientError
from vm_agent.completeness import Completeness
from vm_agent.sender import Sender
from vm_agent.spool import Outgoing, Spool
from vm_agent.telemetry import Telemetry

MANY_BYTES = 10**9


class ScriptedOutlet:
    """A stream that is there or away, takes or refuses, as a script says."""

    def __init__(self) -> None:
        self.connected = True
        self.failures = 0
        self.poison: set[str] = set()
        self.tried: list[str] = []
        self.stored: list[str] = []
        self.claims: list[tuple[int, int]] = []

    async def publish(self, frame: Outgoing, complete_ms: int | None) -> None:
        await asyncio.sleep(0)
        self.tried.append(frame.msg_id)
        if frame.msg_id in self.poison:
            raise PoisonError("too_large", "told so")
        if self.failures or not self.connected:
            self.failures = max(0, self.failures - 1)
            raise TransientError("told so")
        if frame.msg_id not in self.stored:
            self.stored.append(frame.msg_id)
        if complete_ms is not None:
            self.claims.append((complete_ms, len(self.stored)))


class Line:
    """A sender, its outlet and its spool."""

    def __init__(self, folder: Path, max_bytes: int = MANY_BYTES, **options: int) -> None:
        self.outlet = ScriptedOutlet()
        self.spool = Spool(folder, max_bytes)
        self.acked: list[str] = []
        self.sender = Sender(
            self.outlet, self.spool, Telemetry(), Completeness(lambda: 0), self.on_acked,
            look_again_s=0.001, **options,
        )  # fmt: skip

    async def on_acked(self, frame: Outgoing) -> None:
        self.acked.append(frame.msg_id)

    def offer(self, *numbers: int) -> None:
        for number in numbers:
            self.sender.offer(Outgoing(f"m{number}", b"x" * 100, number * 100))

    async def finish(self) -> None:
        """Let everything be sent."""
        self.sender.close()
        async with asyncio.timeout(10):
            await self.sender.run()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(1, 12)),
        st.tuples(st.just("connected"), st.integers(0, 1)),
        st.tuples(st.just("failures"), st.integers(1, 5)),
        st.tuples(st.just("turns"), st.integers(1, 20)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_every_frame_arrives_in_order_over_failures_and_restarts(
    script: list[tuple[str, int]],
) -> None:
    """Each frame is stored once and acknowledged; the first deliveries are in order."""

    async def play(folder: Path) -> None:
        line = Line(folder, batch=4, spool_after=3)
        stored: list[str] = []
        acked: list[str] = []
        claims: list[tuple[int, int]] = []
        offered = 0
        task = asyncio.create_task(line.sender.run(), name="sender")
        for what, n in script:
            match what:
                case "offer":
                    line.offer(*range(offered, offered + n))
                    offered += n
                case "connected":
                    line.outlet.connected = bool(n)
                case "failures":
                    line.outlet.failures = n
                case "turns":
                    for _ in range(n):
                        await asyncio.sleep(0)
                case _:
                    task.cancel()
                    await asyncio.wait({task})
                    await line.sender.put_away()
                    claims += [(c, len(stored) + n) for c, n in line.outlet.claims]
                    stored += line.outlet.stored
                    acked += line.acked
                    line = Line(folder, batch=4, spool_after=3)
                    task = asyncio.create_task(line.sender.run(), name="sender")
        line.outlet.connected, line.outlet.failures = True, 0
        line.sender.close()
        async with asyncio.timeout(20):
            await task
        claims += [(c, len(stored) + n) for c, n in line.outlet.claims]
        stored += line.outlet.stored
        acked += line.acked
        assert line.sender.waiting == 0
        for claim, arrived in claims:
            assert {f"m{n}" for n in range(claim // 100)} <= set(stored[:arrived])
        assert set(acked) == {f"m{n}" for n in range(offered)}
        firsts = list(dict.fromkeys(stored))
        assert set(firsts) == set(acked)
        # A failure reorders within a batch at most.
        for place, name in enumerate(firsts):
            assert abs(place - int(name[1:])) < 4

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(play(Path(name)))
        assert not list(Path(name).iterdir())


async def test_an_outage_longer_than_memory_goes_to_disk_and_comes_back_in_order(
    tmp_path: Path,
) -> None:
    """What the next run finds in the spool is sent first."""
    line = Line(tmp_path, spool_after=5)
    line.outlet.connected = False
    task = asyncio.create_task(line.sender.run(), name="sender")
    async with asyncio.timeout(10):
        for number in range(20):
            line.offer(number)
            while line.sender.waiting > 5 + line.spool.frames:
                await asyncio.sleep(0.001)
    assert line.spool.frames >= 10
    task.cancel()
    await asyncio.wait({task})
    await line.sender.put_away()
    assert line.spool.frames == line.sender.waiting == 20
    after = Line(tmp_path)
    after.offer(20, 21)
    await after.finish()
    assert after.outlet.stored == after.acked == [f"m{n}" for n in range(22)]


async def test_a_full_spool_gives_up_the_oldest_and_says_so(tmp_path: Path) -> None:
    """Bounds are kept, and what went is counted."""
    spool = Spool(tmp_path, 1000)
    dropped = 0
    for segment in range(10):
        frames = [Outgoing(f"{segment}-{n}", b"x" * 50) for n in range(5)]
        dropped += spool.append(frames)
        assert spool.size_bytes <= 1000
    assert dropped + spool.frames == 50
    assert dropped > 0
    found = spool.oldest()
    assert found is not None
    assert found[1][0].msg_id == f"{dropped // 5}-0"


async def test_memory_is_bounded_even_if_the_disk_refuses(tmp_path: Path) -> None:
    """The newest frames stay."""
    line = Line(tmp_path / "spool", max_in_memory=10)
    line.outlet.connected = False
    line.offer(*range(25))
    assert line.sender.waiting == 10
    line.outlet.connected = True
    await line.finish()
    assert line.outlet.stored == [f"m{n}" for n in range(15, 25)]


async def test_a_frame_that_can_never_be_stored_does_not_hold_up_the_others(
    tmp_path: Path,
) -> None:
    """It is given up with a log; the rest arrives."""
    line = Line(tmp_path)
    line.outlet.poison = {"m1"}
    line.offer(0, 1, 2)
    await line.finish()
    assert line.outlet.stored == ["m0", "m2"]


def test_a_damaged_segment_is_set_aside(tmp_path: Path) -> None:
    """The next one is sent; the damaged one stays for a person to look at."""
    spool = Spool(tmp_path, MANY_BYTES)
    spool.append([Outgoing("a", b"1")])
    spool.append([Outgoing("b", b"2")])
    first = min(tmp_path.iterdir())
    first.write_bytes(b"\xc1garbage")
    found = Spool(tmp_path, MANY_BYTES).oldest()
    assert found is not None
    assert [frame.msg_id for frame in found[1]] == ["b"]
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".damaged", ".frames"]


@pytest.mark.parametrize("sync", [True, False])
def test_the_disk_is_waited_for_if_that_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    """File and folder, before `append` returns; or never, and the segment is whole all the same."""
    synced: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    spool = Spool(tmp_path, MANY_BYTES, sync=sync)
    spool.append([Outgoing("a", b"1")])
    expected = [tmp_path / "0000000000000000-1.tmp", tmp_path] if sync else []
    assert synced == expected
    found = Spool(tmp_path, MANY_BYTES).oldest()
    assert found is not None
    assert found[1] == [Outgoing("a", b"1")]


def test_a_segment_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    """Temporary files of a crash are removed."""
    (tmp_path / "0000000000000000-3.tmp").write_bytes(b"half")
    spool = Spool(tmp_path, MANY_BYTES)
    assert spool.oldest() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [1, 33])
async def test_frames_go_out_at_once_while_nats_is_there(tmp_path: Path, frames: int) -> None:
    """Nothing touches the disk."""
    line = Line(tmp_path)
    line.offer(*range(frames))
    await line.finish()
    assert line.acked == [f"m{n}" for n in range(frames)]
    assert line.spool.number == 0
