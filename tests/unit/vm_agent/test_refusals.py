"""How refusals are told: the first ones each, floods by kind, and none is missing."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import TransientError
from schemas.audit import AuditEntry
from schemas.codec import encode
from schemas.ids import new_id
from tests.support.metrics import events
from vm_agent.refusals import MAX_BUFFERED, MAX_KINDS, SINGLES, Door, Refusals
from vm_agent.scrutiny import Claims, Reason
from vm_agent.telemetry import Telemetry

pytestmark = pytest.mark.timeout(10)


class Shelf:
    """Keeps entries, or is away."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        self.away = False

    async def write(self, entry: AuditEntry) -> None:
        """`Write`."""
        await asyncio.sleep(0)
        if self.away:
            raise TransientError("away")
        self.entries.append(entry)

    def counted(self) -> Counter[str]:
        """How many refusals the entries tell of, by reason."""
        found: Counter[str] = Counter()
        for entry in self.entries:
            found[entry.reason] += int(entry.details["count"])
        return found


async def tell(refusals: Refusals) -> None:
    """Have all written."""
    writing = asyncio.create_task(refusals.run(), name="refusals")
    await refusals.flush()
    writing.cancel()
    await asyncio.wait({writing})


@given(
    st.lists(
        st.tuples(
            st.sampled_from(Door), st.sampled_from(Reason), st.integers(0, 60), st.integers(1, 40)
        ),
        max_size=60,
    )
)
def test_a_flood_becomes_few_entries_and_each_refusal_is_in_one(
    floods: list[tuple[Door, Reason, int, int]],
) -> None:
    """Whatever its kinds: the counts add up, and entries are bounded."""

    async def flood() -> tuple[Shelf, Counter[str]]:
        shelf = Shelf()
        refusals = Refusals("h1", shelf.write, Telemetry())
        sent: Counter[str] = Counter()
        for door, reason, customer, times in floods:
            claims = Claims(customer_id=f"c{customer}", requested_by="x" * 255)
            for _ in range(times):
                refusals.note(door, reason, claims, f"vm.cmd.h1.{'y' * 500}", "z" * 500)
            sent[reason.value] += times
        await tell(refusals)
        return shelf, sent

    shelf, sent = asyncio.run(flood())
    assert shelf.counted() == sent
    assert len(shelf.entries) <= SINGLES + MAX_KINDS + len(Door) * len(Reason)
    assert all(len(encode(entry)) < 4096 for entry in shelf.entries)


async def test_entries_wait_for_nats_and_what_does_not_fit_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bounded number; the end waits two seconds for them and says what it gave up."""
    shelf = Shelf()
    refusals = Refusals("h1", shelf.write, Telemetry(), interval_s=0.01)
    shelf.away = True
    writing = asyncio.create_task(refusals.run(), name="refusals")
    noted = 0
    while "audit.entries_lost" not in events(caplog):
        for _ in range(MAX_BUFFERED):
            refusals.note(Door.COMMAND, Reason.EXPIRED, Claims(customer_id=f"c{noted}"), "s", "")
            noted += 1
        await asyncio.sleep(0.02)
    shelf.away = False
    await refusals.flush()
    assert len(shelf.entries) >= MAX_BUFFERED
    writing.cancel()
    await asyncio.wait({writing})


async def test_a_kind_is_logged_once_per_interval(caplog: pytest.LogCaptureFixture) -> None:
    """With its count at the end; what came from outside breaks no line."""
    shelf = Shelf()
    refusals = Refusals("h1", shelf.write, Telemetry())
    claims = Claims(customer_id="acme", command_id=new_id(), requested_by="\x1b[2J\nann")
    for _ in range(50):
        refusals.note(Door.COMMAND, Reason.REPEATED, claims, "vm.cmd.h1", "")
    assert events(caplog) == ["command.refused"]
    await tell(refusals)
    assert events(caplog) == ["command.refused", "command.refused_often"]
    assert shelf.entries[-1].details["count"] == str(50 - SINGLES)
    assert {entry.details["requested_by"] for entry in shelf.entries} == {"?[2J?ann"}
