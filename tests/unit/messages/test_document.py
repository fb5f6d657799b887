"""The AsyncAPI document: well formed, whole, right about roles; its examples are what they say."""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, get_args

import msgspec
import pytest

import schemas
from decisec.bus.roles import shipped
from decisec.messages.catalog import CHANNELS, channel_of, messages
from decisec.messages.channel import Channel
from decisec.messages.document import document
from decisec.messages.grants import Grant, Grants
from decisec.messages.headers import PARAMETERS
from gateway.door import Door
from runtime.streams import declared
from schemas.codec import decoder
from schemas.frames import decode_enriched_frame, decode_frame, encode_frame
from schemas.requests import REQUESTS
from tests.support.asyncapi import AsyncApi, Payloads, found_at, references
from tests.support.bus_catalog import BUCKETS, CASES, NAMES, STREAMS

FRAMES = {"Frame": decode_frame, "EnrichedFrame": decode_enriched_frame}
NOT_ON_THE_BUS = {"MigrationsDone": "what `decisec store migrate` prints"}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """As a reader of the file has it."""
    found: dict[str, Any] = json.loads(json.dumps(document()))
    return found


def test_it_is_asyncapi(made: dict[str, Any]) -> None:
    """Every object has the fields of the specification, and every reference leads somewhere."""
    known = msgspec.convert(made, AsyncApi)
    for reference in references(made):
        assert found_at(made, reference) is not None
    for name, channel in known.channels.items():
        written = set(_braces(channel.address or ""))
        assert set(channel.parameters or ()) == written, name
    for name, operation in known.operations.items():
        place = operation.channel.ref
        for one in operation.messages or ():
            assert one.ref.startswith(f"{place}/messages/"), name
        if operation.reply:
            assert operation.reply.channel.ref == f"{place}Reply"
    names = {name.lower() for name in known.operations}
    assert len(names) == len(known.operations)


def _braces(address: str) -> list[str]:
    return [part[1:-1] for part in address.split(".") if part.startswith("{")]


def test_everything_has_words(made: dict[str, Any]) -> None:
    """Each schema, each field of a request, each place of a frame."""
    for name, schema in made["components"]["schemas"].items():
        assert schema.get("description") or "enum" in schema, name
    for name, frame in ((name, made["components"]["schemas"][name]) for name in FRAMES):
        titles = [place["title"] for place in frame["items"]]
        assert titles == list(messages()[name].kind.__struct_fields__)  # type: ignore[union-attr]
        assert "Column: 8 bytes" in frame["items"][titles.index("cpu_ns")]["description"]
    create = made["components"]["schemas"]["CreateVmRequest"]["properties"]
    assert create["memory_mib"]["description"] == "Guest memory in MiB."
    command = made["components"]["schemas"]["BootVm"]["properties"]
    assert "deadline_exceeded" in command["deadline"]["description"]


@pytest.mark.parametrize("name", messages())
def test_examples_are_what_they_say(made: dict[str, Any], name: str) -> None:
    """The decoder that services use takes them, and their schema does."""
    message, said = messages()[name], made["components"]["messages"][name]
    for example in said.get("examples", ()):
        payload = example["payload"]
        assert Payloads(made).problems(name, payload) == []
        kind: Any = message.kind or message.schema["reply"]
        if name in FRAMES:
            frame = msgspec.convert(payload, kind)
            assert FRAMES[name](encode_frame(frame)) == frame
        else:
            decoded = decoder(kind)(json.dumps(payload).encode())
            again = json.loads(msgspec.json.encode(decoded))
            assert Payloads(made).problems(name, again) == []
    assert ("examples" in said) == (message.kind is not None or bool(message.schema))


def test_every_message_of_the_schemas_has_an_entry() -> None:
    """Whatever can be decoded is on some subject, or it is said why not."""
    said = {one.kind for one in messages().values()}
    said |= {one.schema["reply"] for one in messages().values() if one.schema}
    missing = {
        f"{module.__name__}.{kind.__name__}"
        for module in _modules()
        for name, decode in vars(module).items()
        if name.startswith("decode_")
        for kind in _decoded(decode)
        if kind not in said and kind.__name__ not in NOT_ON_THE_BUS
    }  # fmt: skip
    assert not missing, f"say in decisec/messages on which subject they are: {missing}"


def _modules() -> list[Any]:
    return [import_module(f"schemas.{one.name}") for one in iter_modules(schemas.__path__)]


def _decoded(decode: Any) -> tuple[type, ...]:
    """What a decoder makes: the type, or those of the union."""
    kind: Any = inspect.getclosurevars(decode).nonlocals["inner"].type
    return get_args(kind) or (kind,)


def test_every_subject_stream_and_bucket_has_an_entry() -> None:
    """A new one is refused here until somebody says what is said on it."""
    written = {case.subject for _, case in CASES if not {"*", ">"} & set(case.subject)}
    missing = sorted(subject for subject in written if channel_of(subject) is None)
    assert not missing, f"say in decisec/messages what is said on them: {missing}"
    grants = Grants(shipped(), declared())
    assert {grants.bucket_of(channel) for channel in CHANNELS} - {""} == set(BUCKETS)
    assert {grants.stream_of(channel) for channel in CHANNELS} - {""} == set(STREAMS)
    for channel in CHANNELS:
        assert set(channel.parameters) <= set(PARAMETERS)
        subject = channel.address
        for name in channel.parameters:
            value = next(iter(channel.values.get(name, ())), PARAMETERS[name].example)
            subject = subject.replace(f"{{{name}}}", value)
        # No subject is of two channels.
        assert channel_of(subject) is not None
        assert [c.name for c in CHANNELS if _is_of(c, subject)] == [channel.name], subject


def _is_of(channel: Channel, subject: str) -> bool:
    found = channel_of(subject)
    return found is not None and found[0] is channel


def test_the_door_answers_what_is_listed() -> None:
    """And nothing else."""
    nothing: Any = None
    door = Door(
        *[nothing] * 7,
        operations=nothing,
        snapshots=nothing,
        images=nothing,
        peers=nothing,
        reads=nothing,
    )
    assert door.verbs == set(REQUESTS)
    assert {channel.address.rpartition(".")[2] for channel in CHANNELS
            if channel.address.startswith("vm.req.")} == set(REQUESTS)  # fmt: skip


def test_roles_may_what_it_says() -> None:
    """As the list says by which permissions are tried on a server."""
    grants = Grants(shipped(), declared())
    wrong = []
    for _, case in CASES:
        if {"*", ">"} & set(case.subject):
            continue
        found = channel_of(case.subject)
        assert found is not None
        channel, parameters = found
        send = {g.role for g in grants.senders(channel) if _holds(g, parameters)}
        hear = {
            g.role
            for g in grants.receivers(channel)
            if g.how == "subscribe" and _holds(g, parameters)
        }
        wrong += [] if send == case.publish else [f"{case.subject}: {send} publish"]
        wrong += [] if hear == case.subscribe else [f"{case.subject}: {hear} hear"]
    assert not wrong
    for name, use in BUCKETS.items():
        (channel,) = (c for c in CHANNELS if grants.bucket_of(c) == name)
        assert {g.role for g in grants.senders(channel)} == use.write
        read = {g.role for g in grants.receivers(channel) if g.how == f"bucket {name}"}
        assert read - {"agent"} == use.read
    for channel in CHANNELS:
        if stream := grants.stream_of(channel):
            reading = {g.role for g in grants.receivers(channel) if g.how == f"stream {stream}"}
            assert reading - {"agent"} == STREAMS[stream].consume | STREAMS[stream].read


def _holds(grant: Grant, parameters: dict[str, str]) -> bool:
    """Whether it does for the names of the list."""
    subject = {"host": parameters.get("host"), "customer": parameters.get("customer")}
    mine = not grant.own or NAMES[grant.role] in subject.values()
    return mine and all(parameters.get(name) == value for name, value in grant.only)
