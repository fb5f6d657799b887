"""What is complete never changes, whatever happens on the way from agents to the store."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.support.pipeline_model import Agent, Batcher, Collector, Sent, Stream, Table

HOSTS = st.integers(0, 1)
BATCHERS = st.integers(0, 1)
SENDING = st.lists(st.sampled_from(("ok", "ok", "unheard", "late", "lost")), min_size=1, max_size=4)
COLLECTING = st.lists(
    st.sampled_from(("ok", "ok", "twice", "unheard", "wait", "failed")), min_size=1, max_size=6
)
TELLING = st.sampled_from(("ok", "ok", "unheard", "lost"))
FLUSHING = st.sampled_from(("ok", "ok", "unheard", "not yet"))


class Way(RuleBasedStateMachine):
    """Two agents, one collector at a time, two batchers on one consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.enriched, self.table = Stream(), Stream(), Table()
        self.agents = [Agent(host, self.raw) for host in ("a", "b")]
        self.collector = Collector(self.raw, self.enriched)
        self.batchers = [Batcher(self.enriched, self.table) for _ in range(2)]
        self.answers: dict[tuple[str, int], frozenset[Sent]] = {}

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
    def few_messages_wait(self) -> None:
        """One collector at a time speaks here: the first, one before a restart, and the last."""
        for batcher in self.batchers:
            assert len(batcher.keeper) <= 3 + len(self.agents)

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
