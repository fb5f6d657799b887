"""Buckets and their mirrors against a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runtime.buckets import Bucket, Mark, Mirror, RevisionConflictError
from runtime.bus import Bus
from runtime.errors import TransientError
from runtime.key_mirror import KeyMirror
from schemas.hosts import Customer, decode_customer
from tests.support.nats import NatsServer, bus_with_streams


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path) as pair:
        yield pair


def customer(name: str) -> Customer:
    from runtime.clock import utc_now

    return Customer(customer_id=name, created_at=utc_now())


async def test_a_mirror_follows_its_bucket_across_a_restart(
    served: tuple[NatsServer, Bus],
) -> None:
    """A change and a deletion made after a kill of the server arrive in the mirror."""
    server, bus = served
    bucket = Bucket(bus, "customers", decode_customer)
    await bucket.put("acme", customer("acme"))
    await bucket.put("globex", customer("globex"))
    changed = asyncio.Event()
    mirror = Mirror(bucket, lambda _key, _value: changed.set())

    async def until(condition: object) -> None:
        while mirror.values.keys() != condition:
            changed.clear()
            await changed.wait()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run(), name="mirror")
        await mirror.synced()
        assert mirror.values.keys() == {"acme", "globex"}
        await server.kill()
        await server.start()
        await bus.reconnected_after(0)
        await bucket.put("initech", customer("initech"))
        await bucket.delete("acme")
        await until({"globex", "initech"})
        task.cancel()


async def test_a_mirror_of_one_key_sees_no_other(served: tuple[NatsServer, Bus]) -> None:
    """It is synced with what stands of that key, be it nothing, whatever else there is."""
    _, bus = served
    bucket = Bucket(bus, "customers", decode_customer)
    await bucket.put("globex", customer("globex"))
    heard: list[str] = []
    mirror = KeyMirror(bucket, "acme", lambda key, _value: heard.append(key))
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run(), name="mirror")
        await mirror.synced()
        assert mirror.values == {}
        for name in ("initech", "acme", "globex"):
            await bucket.put(name, customer(name))
        await bucket.delete("acme")
        while len(heard) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
    assert heard == ["acme", "acme"]
    await bucket.put("acme", customer("acme"))
    await bucket.put("globex", customer("globex"))
    late = KeyMirror(bucket, "acme")
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(late.run(), name="mirror")
        await late.synced()
        assert late.values.keys() == {"acme"}
        task.cancel()


class _Hasty:
    """A watcher that says "this is all" before its first entry, as nats-py's may."""

    def __init__(self, watcher: Any) -> None:
        self._watcher = watcher
        self._said = False

    async def __anext__(self) -> Any:
        if not self._said:
            self._said = True
            return None
        return await anext(self._watcher)

    async def stop(self) -> None:
        await self._watcher.stop()


class _HastyStore:
    def __init__(self, store: Any) -> None:
        self._store = store

    async def watch(self, keys: str) -> _Hasty:
        return _Hasty(await self._store.watch(keys))


class _HastyBucket(Bucket[Customer]):
    async def store(self) -> Any:
        return _HastyStore(await super().store())


async def test_a_mirror_believes_the_bucket_and_not_the_watchers_mark(
    served: tuple[NatsServer, Bus],
) -> None:
    """It is synced once everything is there, and never forgets a value on the way."""
    server, bus = served
    bucket = Bucket(bus, "customers", decode_customer)
    names = {f"c{number}" for number in range(20)}
    for name in names:
        await bucket.put(name, customer(name))
    hasty = _HastyBucket(bus, "customers", decode_customer)
    forgotten: list[str] = []
    mirror = Mirror(hasty, lambda key, value: forgotten.append(key) if value is None else None)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run(), name="mirror")
        await mirror.synced()
        assert mirror.values.keys() == names
        await server.kill()
        await server.start()
        await bus.reconnected_after(0)
        await bucket.put("late", customer("late"))
        while "late" not in mirror.values:
            await asyncio.sleep(0.01)
        task.cancel()
    assert forgotten == []
    assert mirror.values.keys() == names | {"late"}


async def test_all_values_are_read_at_once(served: tuple[NatsServer, Bus]) -> None:
    """Also from an empty bucket, and while others write."""
    _, bus = served
    bucket = Bucket(bus, "customers", decode_customer)
    async with asyncio.timeout(60):
        assert await bucket.all() == {}
        await bucket.put("gone", customer("gone"))
        await bucket.delete("gone")
        assert await bucket.all() == {}
        names = {f"c{number}" for number in range(5)}
        for name in names:
            await bucket.put(name, customer(name))

        async def write() -> None:
            while True:
                await bucket.put("busy", customer("busy"))

        async with asyncio.TaskGroup() as group:
            writing = group.create_task(write(), name="write")
            for _ in range(200):
                assert names <= (await bucket.all()).keys()
            writing.cancel()


async def test_a_key_is_created_once_and_updated_only_at_its_revision(
    served: tuple[NatsServer, Bus],
) -> None:
    """Optimistic writes: the second creator and the stale updater both lose."""
    _, bus = served
    bucket = Bucket(bus, "customers", decode_customer)
    assert await bucket.get("acme") is None
    revision = await bucket.create("acme", customer("acme"))
    with pytest.raises(RevisionConflictError):
        await bucket.create("acme", customer("acme"))
    newer = await bucket.update("acme", customer("acme"), revision)
    with pytest.raises(RevisionConflictError):
        await bucket.update("acme", customer("acme"), revision)
    entry = await bucket.get("acme")
    assert entry is not None
    assert entry.revision == newer


async def test_a_mirror_says_when_a_revision_has_come(served: tuple[NatsServer, Bus]) -> None:
    """Deletions count as well."""
    _, bus = served
    bucket = Bucket(bus, "customers", decode_customer)
    await bucket.put("acme", customer("acme"))
    mirror = Mirror(bucket)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run(), name="mirror")
        await mirror.reached(await bucket.last_revision("acme"))
        assert mirror.values.keys() == {"acme"}
        await bucket.delete("acme")
        await mirror.reached(await bucket.last_revision("acme"))
        assert not mirror.values
        task.cancel()


async def test_a_write_goes_by_what_was_done_last_to_a_key(
    served: tuple[NatsServer, Bus],
) -> None:
    """A removal is one of these things; whoever does not know the last one fails."""
    _, bus = served
    bucket = Bucket(bus, "customers", decode_customer)
    acme = customer("acme")
    assert await bucket.mark("acme") == Mark()
    first = await bucket.update("acme", acme, 0)
    with pytest.raises(RevisionConflictError):
        await bucket.update("acme", acme, 0)
    stands = await bucket.mark("acme")
    assert (stands.revision, stands.value) == (first, acme)
    with pytest.raises(RevisionConflictError):
        await bucket.delete("acme", first + 1)
    await bucket.delete("acme", first)
    removed = await bucket.mark("acme")
    assert (removed.revision, removed.value) == (first + 1, None)
    assert removed.at is not None
    assert stands.at is not None
    assert removed.at >= stands.at
    with pytest.raises(RevisionConflictError):
        await bucket.update("acme", acme, first)
    assert await bucket.update("acme", acme, removed.revision) == first + 2


async def test_what_cannot_be_read_is_not_taken_for_nothing(
    served: tuple[NatsServer, Bus],
) -> None:
    """A bucket that is not there has no last word."""
    _, bus = served
    with pytest.raises(TransientError):
        await Bucket(bus, "nowhere", decode_customer).mark("acme")


async def test_a_mirror_tells_of_removals_and_when_they_were(
    served: tuple[NatsServer, Bus],
) -> None:
    """Of those before it was there as well."""
    _, bus = served
    bucket = Bucket(bus, "customers", decode_customer)
    removed: asyncio.Queue[tuple[str, datetime]] = asyncio.Queue()
    for name in ("acme", "globex"):
        await bucket.put(name, customer(name))
    await bucket.delete("acme")
    mirror = Mirror(bucket, on_removed=lambda key, at: removed.put_nowait((key, at)))
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run(), name="mirror")
        await mirror.synced()
        await bucket.delete("globex")
        for name in ("acme", "globex"):
            key, at = await removed.get()
            mark = await bucket.mark(name)
            assert key == name
            assert mark.at is not None
            assert abs(mark.at - at) < timedelta(milliseconds=1)
        task.cancel()


async def test_a_mirror_that_is_cut_off_while_it_begins_leaves_nothing(tmp_path: Path) -> None:
    """At whatever step; a task that the library would leave fails every test."""
    async with bus_with_streams(tmp_path) as (_, bus):
        for steps in range(0, 120, 3):
            mirror = Mirror(Bucket(bus, "customers", decode_customer))
            running = asyncio.create_task(mirror.run(), name="mirror")
            for _ in range(steps):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait({running})
        assert {task.get_name() for task in asyncio.all_tasks()}.isdisjoint({"mirror"})
