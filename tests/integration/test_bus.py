"""The bus against a real nats-server that is killed now and then."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runtime.acks import Stored
from runtime.bus import Bus, Message
from runtime.consumer import Consumer
from runtime.errors import FatalError, OverloadedError, PoisonError, TransientError
from runtime.publisher import Outgoing, Publisher
from runtime.streams import Drift, apply, compare, declared
from runtime.telemetry import span
from tests.support.nats import NatsServer, bus_with_streams


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    async with bus_with_streams(tmp_path) as pair:
        yield pair


async def test_applying_the_declaration_twice_changes_nothing(
    served: tuple[NatsServer, Bus],
) -> None:
    """`streams apply` is idempotent, and `diff` is clean after it."""
    _, bus = served
    before = await apply(bus, declared())
    assert {d.drift for d in before} == {Drift.SAME}
    assert {d.drift for d in await compare(bus, declared())} == {Drift.SAME}


async def test_a_changed_stream_shows_as_drift_and_is_repaired(
    served: tuple[NatsServer, Bus],
) -> None:
    """What somebody changed by hand is named with both values and put right."""
    _, bus = served
    config = (await bus.js.stream_info("METRICS_RAW")).config
    await bus.js.update_stream(config.evolve(max_age=60.0, duplicate_window=30.0))
    drifted = [d for d in await compare(bus, declared()) if d.drift is not Drift.SAME]
    assert [d.name for d in drifted] == ["METRICS_RAW"]
    assert drifted[0].fields["max_age"] == ("259200", "60")
    await apply(bus, declared())
    assert {d.drift for d in await compare(bus, declared())} == {Drift.SAME}


async def test_a_repeated_message_id_is_stored_once(served: tuple[NatsServer, Bus]) -> None:
    """The retry of a publish whose ack was lost has no effect."""
    _, bus = served
    publisher = Publisher(bus)
    first = await publisher.publish("metrics.raw.h1", b"x", msg_id="h1:1")
    again = await publisher.publish("metrics.raw.h1", b"x", msg_id="h1:1")
    assert (first.duplicate, again.duplicate) == (False, True)
    assert first.sequence == again.sequence


async def test_a_message_over_the_limit_is_poison(served: tuple[NatsServer, Bus]) -> None:
    """What can never be stored is not retried."""
    _, bus = served
    with pytest.raises(PoisonError, match="max_payload"):
        await Publisher(bus).publish("metrics.raw.h1", b"x" * 2_000_000, msg_id="a")


async def test_a_full_stream_says_so_at_once(served: tuple[NatsServer, Bus]) -> None:
    """Nobody waits for an acknowledgement that will not come."""
    _, bus = served
    config = (await bus.js.stream_info("VM_COMMANDS")).config
    await bus.js.update_stream(config.evolve(max_bytes=1))
    async with asyncio.timeout(3):
        with pytest.raises(OverloadedError, match="full"):
            await Publisher(bus).publish("vm.cmd.h1.v.boot", b"x", msg_id="1", limit_s=0.2)


async def test_many_are_published_at_once_each_with_its_own_result(
    served: tuple[NatsServer, Bus],
) -> None:
    """In their order: where it stands, or why it does not; one that fails holds up no other."""
    _, bus = served
    config = (await bus.js.stream_info("VM_COMMANDS")).config
    await bus.js.update_stream(config.evolve(max_bytes=1))
    messages = [
        Outgoing("metrics.raw.h1", b"a", "1"),
        Outgoing("metrics.raw.h1", b"x" * 2_000_000, "2"),
        Outgoing("nobody.takes.this", b"c", "3"),
        Outgoing("vm.cmd.h1.v.boot", b"d", "4"),
        Outgoing("metrics.raw.h1", b"e", "1"),
        Outgoing("metrics.raw.h2", b"f", "6", {"Decisec-Test": "yes"}),
    ]
    results = await Publisher(bus).publish_all(messages, limit_s=0.2)
    kinds = [type(result) for result in results]
    assert kinds == [Stored, PoisonError, TransientError, OverloadedError, Stored, Stored]
    stored = [result for result in results if isinstance(result, Stored)]
    assert [one.duplicate for one in stored] == [False, True, False]
    last = await bus.js.get_msg("METRICS_RAW", seq=stored[-1].sequence)
    assert (last.data, (last.headers or {})["Decisec-Test"]) == (b"f", "yes")


async def test_no_more_are_in_flight_than_allowed(served: tuple[NatsServer, Bus]) -> None:
    """Several batches that are each larger than the room share it, and all end."""
    _, bus = served
    publisher = Publisher(bus, max_in_flight=5)
    batches = [
        [Outgoing("metrics.raw.h1", b"x", f"{batch}:{i}") for i in range(40)] for batch in range(4)
    ]
    async with asyncio.timeout(20):
        results = await asyncio.gather(*(publisher.publish_all(batch) for batch in batches))
    places = [one.sequence for some in results for one in some if isinstance(one, Stored)]
    assert sorted(places) == list(range(1, 161))


async def test_a_cancelled_publish_leaves_room_for_others(served: tuple[NatsServer, Bus]) -> None:
    """Nobody waits for ever for the answer to what was given up."""
    server, bus = served
    publisher = Publisher(bus, max_in_flight=3, ack_timeout_s=30)
    await publisher.publish("metrics.raw.h1", b"0", msg_id="0")
    await server.freeze()
    try:
        lost = [Outgoing("metrics.raw.h1", b"x", f"lost:{i}") for i in range(10)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await publisher.publish_all(lost)
    finally:
        server.send(signal.SIGCONT)
    async with asyncio.timeout(20):
        results = await publisher.publish_all(
            [Outgoing("metrics.raw.h1", b"y", f"good:{i}") for i in range(10)]
        )
    assert all(isinstance(result, Stored) for result in results)


async def test_what_follows_a_batch_closely_comes_together(
    served: tuple[NatsServer, Bus],
) -> None:
    """A trickle under load is handed out in batches, not one by one."""
    _, bus = served
    stop = asyncio.Event()
    publisher = Publisher(bus)
    consumer = Consumer(bus, "METRICS_RAW", "test", max_batch=50)
    sizes: list[int] = []

    async def trickle() -> None:
        for i in range(200):
            await publisher.publish("metrics.raw.h1", b"x", msg_id=str(i))

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(trickle(), name="trickle")
        async for batch in consumer.batches(stop):
            sizes.append(len(batch))
            for delivery in batch:
                await delivery.ack()
            if sum(sizes) == 200:
                stop.set()
    assert max(sizes) > 3
    assert len(sizes) < 100


async def test_whoever_does_not_gather_never_waits_for_more(
    served: tuple[NatsServer, Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message is handed out though one was just before."""

    async def waits(*_: object) -> None:
        raise AssertionError("it waits for more")

    monkeypatch.setattr("runtime.consumer.settle", waits)
    _, bus = served
    stop = asyncio.Event()
    publisher = Publisher(bus)
    consumer = Consumer(bus, "METRICS_RAW", "test", gather=False)
    await publisher.publish("metrics.raw.h1", b"x", msg_id="0")
    async with asyncio.timeout(20):
        async for batch in consumer.batches(stop):
            (delivery,) = batch
            await delivery.ack()
            if delivery.sequence == 5:
                stop.set()
            else:
                await publisher.publish("metrics.raw.h1", b"x", msg_id=f"{delivery.sequence}")


async def test_a_batch_comes_at_once_and_holds_what_has_arrived(
    served: tuple[NatsServer, Bus],
) -> None:
    """A lone message is not held back, and a backlog comes in large batches."""
    _, bus = served
    stop = asyncio.Event()
    publisher = Publisher(bus)
    consumer = Consumer(bus, "METRICS_RAW", "test", max_batch=50)
    seen: list[bytes] = []
    sizes: list[int] = []
    async with asyncio.timeout(20):
        await publisher.publish("metrics.raw.h1", b"0", msg_id="0")
        async for batch in consumer.batches(stop):
            sizes.append(len(batch))
            for delivery in batch:
                seen.append(delivery.data)
                await delivery.ack()
            if len(seen) == 1:
                await asyncio.gather(
                    *(
                        publisher.publish("metrics.raw.h1", str(i).encode(), msg_id=str(i))
                        for i in range(1, 301)
                    )
                )
            if len(seen) == 301:
                stop.set()
    assert sorted(map(int, seen)) == list(range(301))
    assert sizes[0] == 1
    assert max(sizes) > 1


async def test_nothing_is_lost_when_the_server_is_killed_under_load(
    served: tuple[NatsServer, Bus],
) -> None:
    """Publisher and consumer both get over three kills of nats-server; all arrive."""
    server, bus = served
    stop = asyncio.Event()
    publisher = Publisher(bus, ack_timeout_s=1.0)
    consumer = Consumer(bus, "METRICS_RAW", "test", max_batch=50, ack_wait_s=2.0)
    total = 1500
    seen: set[int] = set()

    async def produce() -> None:
        for i in range(total):
            await publisher.publish("metrics.raw.h1", str(i).encode(), msg_id=str(i))

    async def consume() -> None:
        async for batch in consumer.batches(stop):
            for delivery in batch:
                seen.add(int(delivery.data))
                try:
                    await delivery.ack()
                except TransientError:
                    continue
            if len(seen) == total:
                stop.set()

    async def disturb() -> None:
        for reached in (200, 600, 1000):
            while len(seen) < reached:
                await asyncio.sleep(0.01)
            await server.kill()
            await server.start()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(produce(), name="produce")
        group.create_task(consume(), name="consume")
        group.create_task(disturb(), name="disturb")
    assert seen == set(range(total))
    info = await bus.js.stream_info("METRICS_RAW")
    assert info.state.messages == total


async def test_a_failing_handler_leaves_the_subscription_alive(
    served: tuple[NatsServer, Bus],
) -> None:
    """One bad message is logged; the next one is answered, with the asker's trace."""
    _, bus = served
    headers: list[str] = []

    async def answer(message: Message) -> bytes:
        headers.append(message.headers.get("traceparent", ""))
        return b"%d" % (10 // int(message.data))

    await bus.subscribe("test.divide", answer)
    with pytest.raises(TransientError):
        await bus.request("test.divide", b"0", timeout_s=0.2)
    with span("ask") as current:
        reply = await bus.request("test.divide", b"5", timeout_s=2)
        trace_id = f"{current.get_span_context().trace_id:032x}"
    assert reply.data == b"2"
    assert trace_id in headers[-1]
    with pytest.raises(TransientError, match="nobody answers"):
        await bus.request("test.nobody", b"", timeout_s=1)


async def test_connecting_waits_for_a_server_until_told_to_stop(tmp_path: Path) -> None:
    """A service may start before NATS does, and can still be stopped then."""
    server = NatsServer(tmp_path)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, stop.set)
    with pytest.raises(FatalError, match="before NATS could be reached"):
        async with Bus.connect(server.settings(), name="test", stop=stop):
            pass
    asyncio.get_running_loop().call_later(0.2, lambda: None)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(server.start(), name="late-server")
        async with Bus.connect(server.settings(), name="test") as bus:
            assert bus.connected
    await server.kill()


async def test_a_sole_consumer_gets_at_once_what_its_forerunner_left(
    served: tuple[NatsServer, Bus],
) -> None:
    """Nothing waits for the ack wait of one that was killed; what was acked does not come again."""
    _, bus = served
    publisher = Publisher(bus)
    for n in range(3):
        await publisher.publish(f"vm.cmd.h1.v{n}.boot", str(n).encode(), msg_id=str(n))
    stop = asyncio.Event()

    async def next_batches(count: int) -> list[Any]:
        consumer = Consumer(
            bus, "VM_COMMANDS", "agent-h1", filter_subjects=("vm.cmd.h1.>",), ack_wait_s=300,
            sole=True,
        )  # fmt: skip
        found: list[Any] = []
        # Left without an answer, as a killed process would.
        async for batch in consumer.batches(stop):
            found += batch
            if len(found) == count:
                break
        return found

    async with asyncio.timeout(10):
        first = await next_batches(3)
        await first[1].ack_sync()
        again = await next_batches(2)
    assert [d.data for d in first] == [b"0", b"1", b"2"]
    assert [d.data for d in again] == [b"0", b"2"]


async def test_a_consumer_knows_what_its_stream_still_holds(
    served: tuple[NatsServer, Bus],
) -> None:
    """An acknowledged message has left the work queue; one that is only delivered has not."""
    server, bus = served
    await Publisher(bus).publish("vm.cmd.h1.v1.boot", b"1", msg_id="1")
    consumer = Consumer(bus, "VM_COMMANDS", "agent-h1", filter_subjects=("vm.cmd.h1.>",))
    assert not await consumer.holds("vm.cmd.h1.v2.boot", "vm.cmd.h1.v2.create")
    async with asyncio.timeout(10):
        async for (delivery,) in consumer.batches(asyncio.Event()):
            assert await consumer.holds("vm.cmd.h1.v1.create", "vm.cmd.h1.v1.boot")
            await delivery.ack_sync()
            assert not await consumer.holds("vm.cmd.h1.v1.create", "vm.cmd.h1.v1.boot")
            break
    await server.kill()
    with pytest.raises(TransientError, match="no word"):
        await consumer.holds("vm.cmd.h1.v1.create", "vm.cmd.h1.v1.boot")


async def test_the_ack_floor_stands_before_the_first_message_that_waits(
    served: tuple[NatsServer, Bus],
) -> None:
    """Also after a kill of the server, and after what waited has come again."""
    server, bus = served
    publisher = Publisher(bus)
    for number in range(1, 6):
        await publisher.publish("metrics.enriched.h1", b"x", msg_id=str(number))
    consumer = Consumer(bus, "METRICS_ENRICHED", "reader", ack_wait_s=1)
    stop = asyncio.Event()
    seen: list[int] = []
    async with asyncio.timeout(60):
        async for batch in consumer.batches(stop):
            for delivery in batch:
                seen.append(delivery.sequence)
                if delivery.sequence != 2:
                    await delivery.ack_sync()
                elif seen.count(2) > 1:
                    assert await consumer.ack_floor() == 1
                    await delivery.ack_sync()
                    stop.set()
            if len(seen) == 5:
                await server.kill()
                await server.start()
    assert await consumer.ack_floor() == 5
