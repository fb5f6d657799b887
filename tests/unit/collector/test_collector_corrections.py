"""Frames are enriched as operators have corrected it, as of their tick and incarnation."""

from __future__ import annotations

from uuid import UUID

import numpy as np

from schemas.corrections import Correction
from schemas.frames import EnrichedFrame
from schemas.ids import new_id
from tests.support.corrections import corrected, owned, planned
from tests.support.feed import Feed, enriched_of, uptime
from tests.support.frames import BASE_MS, Row, frame, record

RUN = new_id()
VM, OTHER = new_id(), new_id()


def correct(feed: Feed, vm_id: UUID, *corrections: Correction) -> None:
    feed.pipeline.specs.corrections.change(str(vm_id), corrected(vm_id, *corrections))


def said(enriched: EnrichedFrame) -> list[tuple[str, str, str]]:
    """Customer, pool and price plan, row by row."""
    columns = (
        (enriched.customers, enriched.customer_index),
        (enriched.pools, enriched.pool_index),
        (enriched.price_plans, enriched.price_plan_index),
    )
    return list(
        zip(*([words[i] for i in np.frombuffer(index, "<u2")] for words, index in columns))  # noqa: B905
    )


def test_an_incarnation_is_its_owners_and_the_next_one_is_not() -> None:
    """Known before or after its frames were first seen; other VMs of the frame stay."""
    feed = Feed(record(VM), record(OTHER))

    def owners(seq: int, incarnation: int) -> list[str]:
        rows = [Row(VM, uptime(100 * seq), incarnation), Row(OTHER, uptime(100 * seq))]
        out = feed(frame(rows, run_id=RUN, seq=seq), at_ms=100 * seq)
        return [customer for customer, _, _ in said(enriched_of(out))]

    assert owners(0, 1) == ["acme", "acme"]
    correct(feed, VM, owned("bolt", 1, 2))
    assert owners(1, 1) == ["bolt", "acme"]
    assert owners(2, 2) == ["bolt", "acme"]
    assert owners(3, 3) == ["acme", "acme"]
    correct(feed, VM, owned("bolt", 1, 2), owned("acme", 2, 2))
    assert owners(4, 2) == ["acme", "acme"]
    feed.pipeline.specs.corrections.change(str(VM), None)
    assert owners(5, 1) == ["acme", "acme"]


def test_words_hold_from_tick_to_tick() -> None:
    """A layout that is known from an earlier tick is not used beyond the end of what it says."""
    feed = Feed(record(VM, pool="metal"))
    correct(
        feed,
        VM,
        planned(BASE_MS + 200, BASE_MS + 500, price_plan="gold", region="north"),
        planned(BASE_MS + 400, BASE_MS + 600, price_plan="iron", pool="fast"),
    )
    found = []
    for seq in [*range(8), 2, 7, 0, 5]:
        out = feed(frame([Row(VM, uptime(100 * seq))], run_id=RUN, seq=seq), at_ms=1000)
        found.append(said(enriched_of(out))[0][1:])
    default, gold, iron, late = (
        ("metal", "default"), ("metal", "gold"), ("fast", "iron"), ("fast", "iron"),
    )  # fmt: skip
    assert found[:8] == [default, default, gold, gold, iron, late, default, default]
    assert found[8:] == [gold, default, default, late]


def test_frames_of_other_vms_keep_their_layout() -> None:
    """One that lies in a corrected range and one that does not are enriched by the same."""
    feed = Feed(record(VM), record(OTHER))
    correct(feed, VM, planned(BASE_MS, BASE_MS + 100, price_plan="gold"))
    for seq in range(3):
        out = feed(frame([Row(OTHER, uptime(100 * seq))], run_id=RUN, seq=seq), at_ms=1000)
        assert said(enriched_of(out)) == [("acme", "default", "default")]


def test_a_value_that_is_not_its_keys_is_left_out() -> None:
    """It could give one customer's rows to another one."""
    feed = Feed(record(VM), record(OTHER))
    feed.pipeline.specs.corrections.change(str(OTHER), corrected(VM, owned("bolt")))
    feed.pipeline.specs.corrections.change("no-uuid", corrected(VM, owned("bolt")))
    out = feed(frame([Row(VM), Row(OTHER)], run_id=RUN))
    assert [customer for customer, _, _ in said(enriched_of(out))] == ["acme", "acme"]
