"""Streams of events over HTTP: whole, in order, one's own only, and bounded."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
import pytest_asyncio

from runtime.bus import Bus, Message
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo
from schemas.event_lists import EventPlace, EventsFound, EventsReply, decode_events_query
from schemas.events import VmEvent, VmPaused, decode_vm_event
from schemas.ids import new_id
from schemas.subjects import VM_EVENTS, events_query, vm_event
from tests.support.events import SSE, created, publish, published, reading
from tests.support.gateway import GatewayProcess, Stack, running_gateway, shared_stack, stack, until
from tests.support.nats import bus_with_streams
from tests.support.tokens import bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with shared_stack(tmp_path_factory.mktemp("events")) as running:
        yield running


async def test_each_event_comes_once_in_order_and_nobody_elses(shared: Stack) -> None:
    """Live, for two readers of one customer and one of another."""
    mine = [created("one") for _ in range(20)]
    theirs = [created("other") for _ in range(20)]
    async with (
        shared.client(headers=bearer("one")) as api,
        shared.client(headers=bearer("other")) as foreign,
        reading(api) as first,
        reading(api) as second,
        reading(foreign) as third,
    ):
        for pair in zip(mine, theirs, strict=True):
            await publish(shared.bus, *pair)
        assert await first.events(20) == mine
        assert await second.events(20) == mine
        assert await third.events(20) == theirs


async def test_a_resume_leaves_nothing_out_and_doubles_nothing(shared: Stack) -> None:
    """From any event's id, from the place that a stream begins with, and while more come."""
    events = [created("back") for _ in range(300)]
    async with shared.client(headers=bearer("back")) as api:
        async with reading(api) as reader:
            begun = reader.parser.place
            await publish(shared.bus, *events[:100])
            places = [(await reader.next()).place for _ in range(100)]
        assert len(set(places)) == 100
        await publish(shared.bus, *events[100:200])
        for place, done in ((begun, 0), (places[0], 1), (places[57], 58), (places[99], 100)):
            async with reading(api, place=place) as reader, asyncio.TaskGroup() as group:
                if not done:
                    group.create_task(publish(shared.bus, *events[200:]))
                assert await reader.events(300 - done) == events[done:]


async def test_ids_are_good_for_their_customer_only(shared: Stack) -> None:
    """A foreign id, a spoiled one and rubbish get the same answer, and tell no sequence."""
    async with shared.client(headers=bearer("ida")) as api, reading(api) as reader:
        await publish(shared.bus, created("ida"), created("ida"))
        one, two = (await reader.next()).place, (await reader.next()).place
        assert one != two
        assert len(one) == len(two) == 27
        answers = []
        async with shared.client(headers=bearer("idb")) as foreign:
            for place in (one, one[:-1] + ("A" if one[-1] != "A" else "E"), "7", "x" * 5000):
                answer = await foreign.get("/v1/events", headers={**SSE, "Last-Event-ID": place})
                problem = answer.json()
                problem.pop("trace_id")
                answers.append((answer.status_code, problem))
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][0] == 400


async def test_streams_can_be_narrowed(shared: Stack) -> None:
    """By VM and by type, live and in what was; a foreign VM gives nothing."""
    vm, other = new_id(), new_id()
    events = [
        created("narrow", vm),
        created("narrow", other),
        created("narrow", vm, VmPaused),
        created("narrow", other, VmPaused),
    ]
    async with shared.client(headers=bearer("narrow")) as api:
        async with reading(api) as reader:
            begun = reader.parser.place
        for path, wanted in (
            (f"/v1/events?vm_id={vm}", [events[0], events[2]]),
            ("/v1/events?type=vm_paused", [events[2], events[3]]),
            (f"/v1/events?vm_id={vm}&type=vm_paused", [events[2]]),
        ):
            async with reading(api, path, begun) as reader:
                await publish(shared.bus, *events)
                found = await reader.events(len(wanted))
                assert [event for event in events if event in found] == wanted
        for bad, field in (
            ("vm_id=x", "vm_id"),
            ("type=.", "type"),
            ("start=2026-01-01T00:00:00Z", "start"),
        ):
            answer = await api.get(f"/v1/events?{bad}", headers=SSE)
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)


async def test_messages_that_lie_are_left_out(shared: Stack) -> None:
    """What is no event, or says that it is another customer's, reaches nobody."""
    honest = created("liar")
    async with shared.client(headers=bearer("liar")) as api, reading(api) as reader:
        lie = created("victim")
        await shared.bus.js.publish(vm_event(honest), encode(lie))
        await shared.bus.js.publish(vm_event(honest), b"not json")
        await publish(shared.bus, honest)
        assert await reader.events(1) == [honest]


async def test_a_stream_without_events_is_kept_alive(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Comments come, and no event."""
    async with (
        stack(tmp_path_factory.mktemp("alive"), stream_heartbeat_s=0.05) as running,
        running.client(headers=bearer("quiet")) as api,
        reading(api) as reader,
    ):
        while reader.comments < 3:
            await reader.more()
        assert not reader.waiting


async def test_an_expired_token_ends_its_stream(shared: Stack) -> None:
    """With the reason, and no other stream with it."""
    async with shared.client(headers=bearer("brief", ttl_s=-3)) as api, reading(api) as reader:
        told = await reader.end()
    assert (told["code"], told["resume"]) == ("unauthenticated", False)


async def test_another_gateway_goes_on_where_one_was_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Gateway after gateway is killed in the middle; the reader gets each event once, in order."""
    folder = tmp_path_factory.mktemp("hop")
    events = [created("hop") for _ in range(200)]
    found: list[object] = []
    place = ""
    async with bus_with_streams(folder) as (server, bus), asyncio.TaskGroup() as group:
        for number in range(4):
            async with (
                GatewayProcess(folder, server.url) as process,
                httpx.AsyncClient(base_url=process.url, headers=bearer("hop")) as api,
            ):
                await process.ready(api)
                async with reading(api, place=place) as reader:
                    if not number:
                        group.create_task(_slowly(bus, events), name="publish")
                    for _ in range(50):
                        event = await reader.next()
                        found.append(published(decode_vm_event(event.data)))
                        place = event.place
                    await process.kill()
    assert found == events


async def _slowly(bus: Bus, events: list[VmEvent]) -> None:
    for event in events:
        await publish(bus, event)
        await asyncio.sleep(0.005)


async def test_a_gateway_that_stops_ends_streams_in_order(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The last event says so; the stop waits for no reader."""
    async with (
        stack(tmp_path_factory.mktemp("stop")) as running,
        running.client(headers=bearer("end")) as api,
    ):
        async with running_gateway(running.server) as (_, _, url):
            request = api.build_request("GET", f"{url}/v1/events", headers=SSE)
            response = await api.send(request, stream=True)
            chunks = response.aiter_bytes()
            await anext(chunks)
        rest = b"".join([chunk async for chunk in chunks])
        assert b"event: end" in rest
        assert b'"code":"stopping"' in rest
        await response.aclose()


async def test_the_bus_may_go_and_come_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A killed nats-server costs time, and no event."""
    async with stack(tmp_path_factory.mktemp("bus")) as running:
        events = [created("away") for _ in range(20)]
        async with running.client(headers=bearer("away")) as api, reading(api) as reader:
            await publish(running.bus, *events[:10])
            assert await reader.events(10) == events[:10]
            await running.server.kill()
            await running.server.start()
            await publish(running.bus, *events[10:])
            assert await reader.events(10) == events[10:]


async def test_who_does_not_read_is_cut_off_and_slows_nobody(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Its connection is closed by the gateway; its neighbour gets every event."""
    options = {"stream_buffer": 64, "streams_per_customer": 2}
    async with stack(tmp_path_factory.mktemp("slow"), **options) as running:
        sock = await _asked(running.url, bearer("slow"))
        sent = 0
        async with running.client(headers=bearer("slow")) as api, reading(api) as reader:

            async def cut() -> bool:
                nonlocal sent
                batch = [created("slow") for _ in range(50)]
                await publish(running.bus, *batch)
                sent += 50
                assert await reader.events(50) == batch
                async with api.stream("GET", "/v1/events", headers=SSE) as response:
                    return response.status_code == 200

            await until(cut, 60)
        loop, received = asyncio.get_running_loop(), b""
        with sock, suppress(ConnectionResetError):
            while data := await loop.sock_recv(sock, 65_536):
                received += data
        assert received.count(b"event: vm_created") < sent


async def _asked(url: str, headers: dict[str, str]) -> socket.socket:
    """A connection that has asked for a stream, and takes next to nothing of it."""
    address, loop = urlsplit(url), asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await loop.sock_connect(sock, (address.hostname, address.port))
    head = {"Host": "x", **SSE, **headers}
    lines = [f"{name}: {value}" for name, value in head.items()]
    await loop.sock_sendall(sock, "\r\n".join(["GET /v1/events HTTP/1.1", *lines, "", ""]).encode())
    assert b"200 OK" in await loop.sock_recv(sock, 2048)
    return sock


async def test_streams_are_bounded_per_customer(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The one too many is refused at once; a closed one makes room."""
    async with (
        stack(tmp_path_factory.mktemp("many"), streams_per_customer=3) as running,
        running.client(headers=bearer("greedy")) as api,
        running.client(headers=bearer("modest")) as neighbour,
    ):
        async with reading(api), reading(api), reading(api):
            answer = await api.get("/v1/events", headers=SSE)
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
            assert answer.headers["Retry-After"]
            async with reading(neighbour):
                pass

        async def room() -> bool:
            async with api.stream("GET", "/v1/events", headers=SSE) as response:
                return response.status_code == 200

        await until(room)


async def test_lists_are_asked_of_the_bus_for_the_tokens_customer(shared: Stack) -> None:
    """Filters go out; a page comes back with a cursor, and a place to follow from."""
    asked = []
    events = [created("lister") for _ in range(3)]
    await publish(shared.bus, *events)
    last = (await shared.bus.js.stream_info(VM_EVENTS)).state.last_seq
    place = EventPlace(at=events[0].at, event_id=events[0].event_id)
    reply = EventsReply(
        found=EventsFound(
            events=tuple(msgspec.Raw(encode(event)) for event in events),
            next=place,
            stored_sequence=last - 2,
        )
    )

    async def answer(message: Message) -> bytes:
        asked.append(decode_events_query(message.data))
        return encode(reply)

    vm = new_id()
    async with shared.client(headers=bearer("lister")) as api:
        assert (await api.get("/v1/events")).status_code == 503
        subscription = await shared.bus.subscribe(events_query("lister"), answer)
        await shared.bus.client.flush()
        page = (await api.get("/v1/events")).json()
        assert [event["event_id"] for event in page["events"]] == [str(e.event_id) for e in events]
        async with reading(api, place=page["follow_from"]) as reader:
            assert await reader.events(2) == events[1:]
        query = {
            "cursor": page["next_cursor"],
            "order": "oldest",
            "type": "vm_stopped",
            "vm_id": str(vm),
            "limit": "7",
            "start": "2026-01-01T00:00:00Z",
            "end": "2026-01-02T00:00:00+01:00",
        }
        assert (await api.get("/v1/events", params=query)).status_code == 200
        sent = asked[-1]
        assert (sent.after, sent.newest_first, sent.limit) == (place, False, 7)
        assert (sent.types, sent.vm_ids) == (("vm_stopped",), (vm,))
        for bad, field in (
            ({"cursor": "x"}, "cursor"),
            ({"limit": "0"}, "limit"),
            ({"order": "random"}, "order"),
            ({"start": "yesterday"}, "start"),
            ({"vm_id": "x"}, "vm_id"),
            ({"type": "a.b"}, "type"),
        ):
            refused = await api.get("/v1/events", params=bad)
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, field)
        reply = EventsReply(error=ErrorInfo(code=ErrorCode.UNAVAILABLE, message="away"))
        assert (await api.get("/v1/events")).status_code == 503
        reply = EventsReply(found=EventsFound(events=(msgspec.Raw(encode(created("else"))),)))
        assert (await api.get("/v1/events")).status_code == 503
        await subscription.unsubscribe()
    async with shared.client(headers=bearer("lister", scopes=("usage:read",))) as api:
        assert (await api.get("/v1/events")).status_code == 403
        assert (await api.get("/v1/events", headers=SSE)).status_code == 403
