"""What is complete never changes, whatever happens on the way from agents to the store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from batcher.watermark import Placements, Until, decode_placed, settle
from schemas.codec import encode
from schemas.ids import new_id
from schemas.subjects import vm_key
from schemas.vms import MAX_FORMER_HOSTS
from tests.support.frames import record
from tests.support.pipeline_model import Agent, Batcher, Collector, Sent, Stream, Table

HOSTS = st.integers(0, 1)
BATCHERS = st.integers(0, 1)
SENDING = st.lists(st.sampled_from(("ok", "ok", "unheard", "late", "lost")), min_size=1, max_size=4)
COLLECTING = st.lists(
    st.sampled_from(("ok", "ok", "twice", "unheard", "wait", "failed")), min_size=1, max_size=6
)
TELLING = st.sampled_from(("ok", "ok", "unheard", "lost"))
FLUSHING = st.sampled_from(("ok", "ok", "unheard", "not yet"))


CUSTOMER = "acme"
MARGIN_MS = 0
"""All clocks are right here."""


def at(ms: int) -> datetime:
    """Unix ms as an instant; None in an answer stands for all before 1970."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


class MovingVm:
    """A VM, where it was, and what its record says.

    Attributes:
        placements: What a batcher knows of it.
        left_ms: When it left a host the last time.
    """

    def __init__(self, agent: Agent) -> None:
        self.placements = Placements()
        self.left_ms = 0
        self._agent = agent
        self._since_ms = 0
        self._stays: list[tuple[str, int, int]] = []
        self._record = record(new_id(), customer=CUSTOMER, host=agent.host)
        self._write()

    def move(self, agent: Agent, *, known: bool) -> None:
        """To another host, before whose next tick the record stands.

        Args:
            agent: Of that host.
            known: Whether it is known when it left the one that it was on.
        """
        if len(self._stays) == MAX_FORMER_HOSTS:
            return  # rows of the oldest ones would be refused
        self.left_ms = self._agent.tick_ms + 1
        self._stays.append((self._agent.host, self._since_ms, self.left_ms))
        self._record = self._record.moved(
            agent.host,
            last_incarnation=len(self._stays),
            left_at=at(self.left_ms) if known else None,
        )
        self._agent, self._since_ms = agent, agent.tick_ms + 1
        self._write()

    def learn(self) -> None:
        """Of all hosts that it has left, when that was."""
        formers = tuple(
            msgspec.structs.replace(former, left_at=at(left_ms))
            for former, (_, _, left_ms) in zip(self._record.former_hosts, self._stays, strict=True)
        )
        self._record = msgspec.structs.replace(self._record, former_hosts=formers)
        self._write()

    def was_on(self, host: str, tick_ms: int) -> bool:
        """Whether a host's frame of a tick tells of it."""
        stays = [*self._stays, (self._agent.host, self._since_ms, 2**62)]
        return any(on == host and a <= tick_ms < b for on, a, b in stays)

    def _write(self) -> None:
        placed = decode_placed(encode(self._record))
        self.placements.change(vm_key(CUSTOMER, self._record.vm_id), placed)


class Way(RuleBasedStateMachine):
    """Two agents, one collector at a time, two batchers on one consumer; a VM that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.enriched, self.table = Stream(), Stream(), Table()
        self.agents = [Agent(host, self.raw) for host in ("a", "b")]
        self.collector = Collector(self.raw, self.enriched)
        self.batchers = [Batcher(self.enriched, self.table) for _ in range(2)]
        self.answers: dict[tuple[str, int], frozenset[Sent]] = {}
        self.vm = MovingVm(self.agents[0])
        self.lost: set[str] = set()
        self.bills: dict[tuple[int, Until], frozenset[Sent]] = {}

    @rule(
        host=HOSTS,
        ticks=st.integers(0, 3),
        sending=SENDING,
        collecting=COLLECTING,
        telling=TELLING,
        number=BATCHERS,
        flushing=FLUSHING,
    )
    def go_on(
        self,
        host: int,
        ticks: int,
        sending: list[str],
        collecting: list[str],
        telling: str,
        number: int,
        flushing: str,
    ) -> None:
        """A step of every part, each with a fate of its own."""
        agent = self.agents[host]
        for tick in range(ticks):
            agent.sample(1 + tick % 2)
        agent.send(sending)
        self.collector.take(self.raw.fetch(len(collecting)), collecting)
        self.collector.tell(telling)
        asyncio.run(self._store(number, flushing))

    async def _store(self, number: int, flushing: str) -> None:
        batcher = self.batchers[number]
        await batcher.take(self.enriched.fetch(8))
        if flushing != "not yet":
            await batcher.flush(flushing)
        await batcher.look()

    @rule(host=HOSTS, what=st.sampled_from(("spool", "restart", "kill", "wait")))
    def disturb_agent(self, host: int, what: str) -> None:
        getattr(self.agents[host], what)()

    @rule(host=HOSTS, twice=st.booleans())
    def stray(self, host: int, twice: bool) -> None:
        if self.agents[host].strays:
            self.raw.store(self.agents[host].strays.pop(0), twice=twice)

    @rule(host=HOSTS, known=st.booleans())
    def move(self, host: int, known: bool) -> None:
        self.vm.move(self.agents[host], known=known)

    @rule()
    def learn_that_nothing_is_left(self) -> None:
        self.vm.learn()

    @rule(host=st.sampled_from(("a", "b")))
    def lose_or_find(self, host: str) -> None:
        self.lost ^= {host}

    @rule(fates=COLLECTING, data=st.data())
    def collect_again(self, fates: list[str], data: st.DataObject) -> None:
        self.collector.take(data.draw(st.permutations(self.raw.again())), fates)

    @rule()
    def restart_collector(self) -> None:
        self.collector = Collector(self.raw, self.enriched)

    @rule(number=BATCHERS, data=st.data())
    def fetch_again(self, number: int, data: st.DataObject) -> None:
        again = data.draw(st.permutations(self.enriched.again()))
        asyncio.run(self.batchers[number].take(again[:5]))

    @rule(number=BATCHERS, away=st.booleans())
    def look(self, number: int, away: bool) -> None:
        self.table.away = away
        asyncio.run(self.batchers[number].look())
        self.table.away = False

    @rule(number=BATCHERS, after_insert=st.booleans())
    def kill_batcher(self, number: int, after_insert: bool) -> None:
        if after_insert:
            asyncio.run(self.batchers[number].flush("unheard"))
        self.batchers[number] = Batcher(self.enriched, self.table)

    def teardown(self) -> None:
        """Once nothing disturbs any more, all frames arrive, and every host is complete."""
        for agent in self.agents:
            agent.wait()
            for _ in range(3):
                agent.sample(1)
            while agent.waiting:
                agent.send(["ok"])
        while self.raw.again() or self.raw.delivered < len(self.raw.entries):
            places = self.raw.again() + self.raw.fetch(10)
            self.collector.take(places, ["ok"] * len(places))
        self.collector.tell("ok")
        asyncio.run(self._settle_batchers())
        for agent in self.agents:  # they claim once a second
            assert self.table.complete_ms[agent.host] > agent.tick_ms - 1000
        self.what_is_complete_never_changes()
        self.what_a_vm_is_billed_never_changes()
        self.lost.clear()
        complete = self.settle(0).time
        assert complete is not None
        assert complete > at(min(agent.tick_ms for agent in self.agents) - 1000)

    async def _settle_batchers(self) -> None:
        self.batchers = [Batcher(self.enriched, self.table) for _ in range(2)]
        turn = 0
        while self.enriched.again() or self.enriched.delivered < len(self.enriched.entries):
            batcher = self.batchers[turn % 2]
            await batcher.take(self.enriched.again()[:3] + self.enriched.fetch(3))
            await batcher.flush("ok")
            await batcher.look()
            turn += 1
            assert turn < 1000

    @invariant()
    def what_is_complete_never_changes(self) -> None:
        for host, until in self.table.complete_ms.items():
            self.answers.setdefault((host, until), self._before(host, until))
        for (host, until), answer in self.answers.items():
            assert self._before(host, until) == answer

    @invariant()
    def what_a_vm_is_billed_never_changes(self) -> None:
        """Wherever it was; where a lost host is named, but for what was there."""
        for start_ms in (0, self.vm.left_ms + MARGIN_MS):
            until = self.settle(start_ms)
            self.bills.setdefault((start_ms, until), self._billed(start_ms, until))
        for (start_ms, until), bill in self.bills.items():
            assert self._billed(start_ms, until) == bill

    def settle(self, start_ms: int) -> Until:
        """How far the VM's bill is complete now."""
        return settle(
            self.vm.placements.hosts(CUSTOMER, ()),
            self.table.complete_ms,
            self.lost,
            start_ms=start_ms,
            # No agent's clock is behind this one.
            latest_ms=min(agent.tick_ms for agent in self.agents) - MARGIN_MS,
            margin_ms=MARGIN_MS,
        )

    def _billed(self, start_ms: int, until: Until) -> frozenset[Sent]:
        return frozenset(
            frame
            for frame in self.table.frames
            if until.time is not None
            and start_ms <= frame.tick_ms
            and at(frame.tick_ms) < until.time
            and frame.host not in until.lost_hosts
            and self.vm.was_on(frame.host, frame.tick_ms)
        )

    @invariant()
    def few_messages_wait(self) -> None:
        """One collector at a time speaks here: the first, one before a restart, and the last."""
        for batcher in self.batchers:
            assert len(batcher.keeper) <= 3 + len(self.agents)

    def billed(self) -> frozenset[Sent]:
        """All that is in the store of the VM."""
        return self._billed(0, Until(at(2**40)))

    def _before(self, host: str, until: int) -> frozenset[Sent]:
        return frozenset(
            frame for frame in self.table.frames if frame.host == host and frame.tick_ms < until
        )


def test_what_is_complete_never_changes() -> None:
    """Late, lost, repeated and reordered frames and acks, restarts and kills of all parts."""
    run_state_machine_as_test(
        Way, settings=settings(max_examples=120, stateful_step_count=40, deadline=None)
    )


def test_a_frame_that_outlives_its_agent_changes_nothing() -> None:
    """The kernel sends it after the next run has begun: that one claims nothing until then."""
    way = Way()
    ok = ["ok"] * 4
    for what in ("kill", "wait"):
        way.agents[0].sample(1)
        way.disturb_agent(0, what)
        way.go_on(0, 3, ok, ok, "ok", 0, "ok")
        way.what_is_complete_never_changes()
        way.stray(0, twice=False)
        way.go_on(0, 3, ok, ok, "ok", 0, "ok")
        way.what_is_complete_never_changes()
    assert way.answers


def test_what_a_host_holds_of_a_vm_that_has_left_is_waited_for() -> None:
    """Until it has come past that time; or is lost, and then it is named."""
    way, ok = Way(), ["ok"] * 9

    def both_go_on() -> None:
        for agent in (0, 1):
            way.go_on(agent, 3, ok, ok, "ok", 0, "ok")
        way.what_a_vm_is_billed_never_changes()

    both_go_on()
    left_behind = way.agents[0]
    for _ in range(4):
        left_behind.sample(1)
    left_behind.spool()
    way.move(1, known=True)
    left_ms = way.vm.left_ms
    for _ in range(4):
        way.go_on(1, 3, ok, ok, "ok", 0, "ok")
    for _ in range(12):
        left_behind.sample(1)
    way.what_a_vm_is_billed_never_changes()
    held = way.settle(0).time
    assert held is not None
    assert held < at(left_ms)
    way.lose_or_find("a")
    assert way.settle(0).lost_hosts == ("a",)
    # What begins after the VM has left is no business of that host's.
    assert way.settle(left_ms) == Until(way.settle(0).time)
    way.lose_or_find("a")
    before = way.billed()
    while left_behind.waiting:
        left_behind.send(ok)
    for _ in range(4):
        both_go_on()
    assert len(way.billed() - before) >= 4
    after = way.settle(0).time
    assert after is not None
    assert after > at(left_ms)
