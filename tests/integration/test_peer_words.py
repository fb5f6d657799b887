"""What an agent believes of what is said on the bus about peers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runtime.buckets import RevisionConflictError
from schemas.subjects import NETWORK_PEERS
from tests.support.halves import Halves, agreeing_with
from tests.support.nats import bus_with_streams
from vm_agent.peer_words import NatsPeerWords


async def until_said(words: NatsPeerWords, expected: dict[str, set[str]]) -> None:
    """Wait until just this is said."""
    async with asyncio.timeout(5):
        while {one: set(peers) for one, peers in words.said.items()} != expected:
            words.told.clear()
            await words.told.wait()


async def test_what_the_server_refuses_is_not_believed(tmp_path: Path) -> None:
    """A core message reaches all who listen, stored or not; nor is anything else believed."""
    async with bus_with_streams(tmp_path) as (_, bus):
        halves, words = Halves(bus), NatsPeerWords(bus)
        await halves.say("acme", "globex")
        first = await halves.say("globex", "initech")
        await halves.say("initech", "globex")
        words.want(frozenset({"acme", "globex", "hooli"}))
        running = asyncio.ensure_future(words.run())
        await until_said(words, {"acme": {"globex"}, "globex": {"initech"}, "hooli": set()})
        assert words.changed() == {"acme", "globex", "hooli"}
        await halves.say("globex")
        await until_said(words, {"acme": {"globex"}, "globex": set(), "hooli": set()})
        with pytest.raises(RevisionConflictError):
            await halves.bucket.update("globex", agreeing_with("acme"), first)
        # Said without a place, and of old.
        data = b'{"halves":{"acme":{"since":"2026-01-01T00:00:00Z"}}}'
        await bus.publish("network.peers.globex", data)
        await bus.publish("network.peers.globex", data, {"Nats-Sequence": str(first)})
        await bus.publish("network.peers.globex", b"{", {"Nats-Sequence": "1"})
        await halves.say("acme", "hooli")
        await until_said(words, {"acme": {"hooli"}, "globex": set(), "hooli": set()})
        assert words.changed() == {"acme", "globex"}
        words.want(frozenset({"hooli"}))
        assert words.said == {"hooli": frozenset()}
        running.cancel()
        await asyncio.wait({running})


async def test_what_was_said_while_the_bus_was_away_is_looked_up(tmp_path: Path) -> None:
    """Until then what was said last holds."""
    async with bus_with_streams(tmp_path) as (server, bus):
        halves, words = Halves(bus), NatsPeerWords(bus)
        await halves.say("acme", "globex")
        words.want(frozenset({"acme"}))
        running = asyncio.ensure_future(words.run())
        await until_said(words, {"acme": {"globex"}})
        # Nobody hears this: it is said where nothing is told once more.
        info = await bus.js.stream_info(f"KV_{NETWORK_PEERS}")
        await bus.js.update_stream(info.config.evolve(republish=None))
        await halves.say("acme")
        assert words.said == {"acme": frozenset({"globex"})}
        await server.kill()
        await server.start()
        await until_said(words, {"acme": set()})
        running.cancel()
        await asyncio.wait({running})
