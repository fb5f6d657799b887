"""The figures of the agent's benchmark are what the frames say."""

from __future__ import annotations

from schemas.units import NS_PER_MS, NS_PER_S
from tests.load.agent_frames import Head, catching_up, punctuality

BACK_NS = 1_800_000_010 * NS_PER_S


def head(seq: int, stored_ms: int, *, late_ms: int = 0, missed: int = 0) -> Head:
    """Frame number 0 is 10 s before NATS is back; it is stored so long after that."""
    tick_ms = (BACK_NS - 10 * NS_PER_S) // NS_PER_MS + 100 * seq
    return Head(seq, tick_ms, late_ms * NS_PER_MS, missed, 1, 50, BACK_NS + stored_ms * NS_PER_MS)


def test_lateness_and_missed_ticks_are_those_of_the_frames() -> None:
    """In ms, over all frames."""
    heads = [head(n, 0, late_ms=n, missed=n // 99) for n in range(100)]
    figures = punctuality(heads)
    assert (figures["ticks"], figures["missed"]) == (100, 1)
    assert figures["lateness_ms"] == {"p50": 50, "p99": 99, "max": 99}


def test_a_backlog_is_what_was_made_before_and_stored_after() -> None:
    """Frames that came live before and after do not count for the speed."""
    before = [head(0, -9_990)]
    backlog = [head(n, 200 + n) for n in range(1, 101)]
    live = [head(n, 1000 + 100 * n) for n in range(101, 110)]
    figures = catching_up([*before, *backlog[:-1], *live], BACK_NS)
    assert (figures["frames"], figures["size_bytes"]) == (99, 99 * 50)
    assert (figures["first_after_s"], figures["sent_in_s"]) == (0.2, 0.1)
    assert figures["ratio_to_live"] == 101.0
    assert (figures["holes"], figures["repeated"], figures["out_of_order"]) == (1, 0, 0)


def test_holes_copies_and_swaps_are_counted() -> None:
    """Each on its own."""
    seqs = [1, 2, 4, 3, 6, 6, 9]
    figures = catching_up([head(seq, 10 * n) for n, seq in enumerate(seqs)], BACK_NS)
    assert (figures["holes"], figures["repeated"], figures["out_of_order"]) == (3, 1, 1)
