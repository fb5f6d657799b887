"""Consoles: cut and read by offset, whatever a guest prints and whenever the agent starts anew."""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.consoles import MAX_CHUNK_BYTES, ConsoleQuery
from schemas.ids import new_id
from vm_agent.consoles import KEPT_BYTES, ConsoleLog, Consoles

KEPT = 10


def print_on(path: Path, data: bytes) -> None:
    """What a VMM does: append."""
    with path.open("ab") as console:
        console.write(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vm.log"


def test_it_is_cut_only_when_it_is_twice_too_long(path: Path) -> None:
    """The tail stays."""
    log = ConsoleLog(path, KEPT)
    assert not log.trim()
    print_on(path, b"0123456789" * 2)
    assert not log.is_long()
    assert not log.trim()
    print_on(path, b"x")
    assert log.is_long()
    assert log.trim()
    assert path.read_bytes() == b"123456789x"


def test_an_offset_stays_right_over_cuts_and_over_agents(path: Path) -> None:
    """What is cut off is told once; the next agent counts on."""
    print_on(path, b"a" * 15 + b"b" * 15)
    log = ConsoleLog(path, KEPT)
    assert log.read(4, offset=13).data == b"aabb"
    assert log.trim()
    for each in (log, ConsoleLog(path, KEPT)):
        assert each.read(4, offset=24).data == b"bbbb"
        left = each.read(100, offset=13)
        assert (left.data, left.offset, left.next_offset) == (b"b" * 10, 20, 30)
        assert (left.lost_bytes, left.end) == (7, True)
        assert each.read(100, offset=20).lost_bytes == 0
    print_on(path, b"c" * 20)
    later = ConsoleLog(path, KEPT)
    assert later.trim()
    assert later.read(100) == ConsoleLog(path, KEPT).read(100)
    assert (later.read(100).offset, later.read(100).lost_bytes) == (40, 40)


def test_a_part_can_be_had_from_the_end_and_never_past_it(path: Path) -> None:
    """The limit counts from where the part begins; an offset past the end leads to the end."""
    log = ConsoleLog(path, KEPT)
    empty = log.read(5, offset=3)
    assert (empty.data, empty.offset, empty.next_offset, empty.end) == (b"", 0, 0, True)
    print_on(path, b"0123456789")
    first = log.read(4)
    assert (first.data, first.next_offset, first.end, first.lost_bytes) == (b"0123", 4, False, 0)
    tail = log.read(2, tail_bytes=3)
    assert (tail.data, tail.offset, tail.next_offset, tail.end) == (b"78", 7, 9, False)
    assert log.read(100, tail_bytes=1000).data == b"0123456789"
    assert log.read(100, tail_bytes=0).next_offset == 10
    past = log.read(5, offset=11)
    assert (past.data, past.offset, past.next_offset, past.end) == (b"", 10, 10, True)


@pytest.mark.parametrize("tally", [b"", b"12", b"\xff", b"-3", b"1e3"])
def test_a_torn_tally_costs_repetition_and_no_more(path: Path, tally: bytes) -> None:
    """What is kept can be read, whatever the number says."""
    print_on(path, b"0123456789")
    path.with_suffix(".cut").write_bytes(tally)
    chunk = ConsoleLog(path, KEPT).read(100)
    assert chunk.data == b"0123456789"
    assert chunk.offset == (12 if tally == b"12" else 0)


@pytest.mark.parametrize(
    "put", [lambda p, t: p.symlink_to(t), lambda p, _: os.mkfifo(p), lambda p, _: p.mkdir()]
)
def test_only_a_plain_file_is_opened(
    path: Path, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    """What a guest could put in its place leads nowhere and holds nobody up."""
    target = tmp_path / "secret"
    target.write_bytes(b"s" * 100)
    put(path, target)
    log = ConsoleLog(path, KEPT)
    with pytest.raises(OSError, match=r"vm\.log"):
        log.read(10)
    with pytest.raises(OSError, match=r"vm\.log"):
        log.trim()
    assert target.read_bytes() == b"s" * 100


def test_offsets_are_right_on_a_full_disk(path: Path) -> None:
    """What could not be written back is cut off like the rest."""
    print_on(path, b"0123456789abcdefghijklmno")
    log = ConsoleLog(path, KEPT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            log.trim()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"fghi"
    for each in (log, ConsoleLog(path, KEPT)):
        assert (each.read(100).offset, each.read(100).next_offset) == (21, 25)


def test_nothing_is_left_of_one_that_is_removed(path: Path, tmp_path: Path) -> None:
    """Whether it was ever there or not, and as often as it is removed."""
    log = ConsoleLog(path, KEPT)
    log.remove()
    print_on(path, b"x" * 30)
    log.trim()
    log.remove()
    log.remove()
    assert list(tmp_path.iterdir()) == []
    assert log.read(10).offset == 0


PRINT = st.tuples(st.just("print"), st.binary(max_size=40))
STEPS = st.lists(
    PRINT
    | st.tuples(st.sampled_from(["trim", "restart"]), st.just(b""))
    | st.tuples(st.just("read"), st.binary(min_size=1, max_size=15)),
    max_size=60,
)


@given(STEPS)
def test_what_is_read_is_what_was_printed_less_what_was_said_to_be_lost(
    steps: list[tuple[str, bytes]],
) -> None:
    """Each byte is read once, in its place, or counted as lost; over any cuts and restarts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vm.log"
        log, printed, offset = ConsoleLog(path, KEPT), b"", 0

        def read_on(limit_bytes: int) -> bool:
            nonlocal offset
            chunk = log.read(limit_bytes, offset=offset)
            assert chunk.offset == offset + chunk.lost_bytes
            assert chunk.data == printed[chunk.offset : chunk.next_offset]
            assert len(chunk.data) <= limit_bytes
            assert chunk.end == (chunk.next_offset == len(printed))
            offset = chunk.next_offset
            return chunk.end

        for step, data in steps:
            match step:
                case "print":
                    print_on(path, data)
                    printed += data
                case "trim":
                    log.trim()
                    assert not path.exists() or path.stat().st_size <= 2 * KEPT
                case "restart":
                    log = ConsoleLog(path, KEPT)
                case "read":
                    read_on(len(data))
        while not read_on(7):
            pass
        assert offset == len(printed)


def numbered(begin: int, end: int) -> bytes:
    """A console of which every part tells where it belongs."""
    return b"".join(b"%015d\n" % at for at in range(begin, end, 16))


async def test_reading_and_cutting_take_turns(tmp_path: Path) -> None:
    """Readers that look on without a pause while it is cut never see a part out of its place."""
    vm_id, path = new_id(), tmp_path / "vm.log"
    consoles = Consoles(lambda _: path)
    size, more = 0, 2 * KEPT_BYTES + 16

    async def look_on(back: int, trimming: asyncio.Task[None]) -> int:
        looks = 0
        while not trimming.done():
            offset = max(0, size - back)
            chunk = await consoles.read(
                ConsoleQuery(customer_id="acme", vm_id=vm_id, offset=offset)
            )
            assert chunk.offset == offset + chunk.lost_bytes
            assert chunk.data == numbered(chunk.offset, min(size, chunk.offset + MAX_CHUNK_BYTES))
            looks += 1
        return looks

    for _ in range(8):
        print_on(path, numbered(size, size + more))
        size += more
        async with asyncio.TaskGroup() as group:
            trimming = group.create_task(consoles.trim(vm_id))
            readers = [
                group.create_task(look_on(back, trimming)) for back in (16, KEPT_BYTES, size)
            ]
        assert all(reader.result() for reader in readers)
        assert path.stat().st_size <= 2 * KEPT_BYTES
    assert (await consoles.read(ConsoleQuery(customer_id="acme", vm_id=vm_id))).lost_bytes > 0


async def test_a_console_that_cannot_be_cut_stops_nothing(tmp_path: Path) -> None:
    """It is tried again."""
    vm_id, path = new_id(), tmp_path / "vm.log"
    print_on(path, b"x" * (2 * KEPT_BYTES + 1))
    in_the_way = path.with_suffix(".cut.tmp")
    in_the_way.mkdir()
    consoles = Consoles(lambda _: path)
    await consoles.trim(vm_id)
    in_the_way.rmdir()
    print_on(path, b"x" * (KEPT_BYTES + 1))
    await consoles.trim(vm_id)
    assert path.stat().st_size == KEPT_BYTES
    left = await consoles.read(ConsoleQuery(customer_id="acme", vm_id=vm_id, tail_bytes=0))
    assert left.next_offset == 3 * KEPT_BYTES + 2
    await consoles.remove(vm_id)
    assert list(tmp_path.iterdir()) == []
