"""What an agent believes of what is said on the bus about peers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runtime.buckets import RevisionConflictError
from schemas.codec import encode
from schemas.subjects import NETWORK_PEERS
from tests.support.halves import Halves, agreeing_with
from tests.support.nats import bus_with_streams
from tests.support.secured_bus import secured_bus
from vm_agent.peer_words import NatsPeerWords

MANY = frozenset(f"customer-{number}" for number in range(30))
"""So many that looking at one after the other takes longer than a test waits."""


async def until_said(words: NatsPeerWords, expected: dict[str, set[str]]) -> None:
    """Wait until just this is said, and nothing by the many."""
    async with asyncio.timeout(5):
        while {one: set(peers) for one, peers in words.said.items()} != {
            **{one: set() for one in MANY},
            **expected,
        }:
            words.told.clear()
            await words.told.wait()


async def test_what_the_server_refuses_is_not_believed(tmp_path: Path) -> None:
    """A core message reaches all who listen, stored or not; nor is anything else believed."""
    async with bus_with_streams(tmp_path) as (_, bus):
        halves, words = Halves(bus), NatsPeerWords(bus)
        await halves.say("acme", "globex")
        first = await halves.say("globex", "initech")
        await halves.say("initech", "globex")
        words.want(frozenset({"acme", "globex", *MANY}))
        running = asyncio.ensure_future(words.run())
        await until_said(words, {"acme": {"globex"}, "globex": {"initech"}})
        assert words.changed() == {"acme", "globex", *MANY}
        await halves.say("globex")
        await until_said(words, {"acme": {"globex"}, "globex": set()})
        assert words.changed() == {"globex"}
        opening = agreeing_with("acme")
        with pytest.raises(RevisionConflictError):
            await halves.bucket.update("globex", opening, first)
        # Said without a place, of old, or what cannot be read.
        told = "network.peers.{}"
        await bus.publish(told.format("globex"), encode(opening))
        await bus.publish(told.format("globex"), encode(opening), {"Nats-Sequence": str(first)})
        await bus.publish(told.format("acme"), b"{", {"Nats-Sequence": "1"})
        await halves.say("acme", "hooli", "globex")
        await until_said(words, {"acme": {"hooli", "globex"}, "globex": set()})
        assert words.changed() == {"acme"}
        await bus.publish(told.format("acme"), b"{", {"Nats-Sequence": str(2**40)})
        await until_said(words, {"acme": set(), "globex": set()})
        words.want(MANY)
        await until_said(words, {})
        running.cancel()
        await asyncio.wait({running})


async def test_what_was_said_while_the_bus_was_away_is_looked_up(tmp_path: Path) -> None:
    """Until then what was said last holds."""
    async with bus_with_streams(tmp_path) as (server, bus):
        halves, words = Halves(bus), NatsPeerWords(bus)
        await halves.say("acme", "globex")
        words.want(frozenset({"acme", *MANY}))
        running = asyncio.ensure_future(words.run())
        await until_said(words, {"acme": {"globex"}})
        # Nobody hears this: it is said where nothing is told once more.
        info = await bus.js.stream_info(f"KV_{NETWORK_PEERS}")
        await bus.js.update_stream(info.config.evolve(republish=None))
        await halves.say("acme")
        assert words.said["acme"] == {"globex"}
        await server.kill()
        await server.start()
        await until_said(words, {"acme": set()})
        running.cancel()
        await asyncio.wait({running})


async def test_an_agent_hears_it_with_a_hosts_rights(tmp_path: Path) -> None:
    """In an account of its own, where it may read single keys, and neither write nor list."""
    async with secured_bus(tmp_path) as secured:
        for role, name in (("gateway", "g1"), ("agent", "h1")):
            secured.issue(role, name)
        assert secured.folder.reload()
        async with secured.bus("gateway", "g1") as gateway, secured.bus("agent", "h1") as agent:
            halves, words = Halves(gateway), NatsPeerWords(agent)
            await halves.say("acme", "globex")
            words.want(frozenset({"acme", *MANY}))
            running = asyncio.ensure_future(words.run())
            await until_said(words, {"acme": {"globex"}})
            await halves.say("acme", "globex", "initech")
            await until_said(words, {"acme": {"globex", "initech"}})
            running.cancel()
            await asyncio.wait({running})
