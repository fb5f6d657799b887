"""All that is said on a bus, overheard, and what the AsyncAPI document has against it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import nats
from nats.aio.msg import Msg

from decisec.messages.channel import MSGPACK, covers
from decisec.messages.payloads import json_form
from tests.support.asyncapi import Payloads

_NATS_OWN = ("$JS.", "$SYS.", "_R_.")
_INBOX = "_INBOX."
_DELIVERED = frozenset({"Nats-Pin-Id"})
"""Headers that NATS adds when it delivers to a consumer."""


@dataclass(frozen=True)
class Heard:
    """One message.

    Attributes:
        reply: Where an answer is to go; empty for nowhere.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str = ""


class Listener:
    """What was heard, in order."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []

    async def until(self, subject: str, within_s: float = 30.0) -> None:
        """Return once something was said on a subject."""
        async with asyncio.timeout(within_s):
            while not any(message.subject == subject for message in self.heard):
                await asyncio.sleep(0.05)

    async def hear(self, message: Msg) -> None:
        """Note a message, unless it is between a client and NATS itself."""
        if not message.subject.startswith(_NATS_OWN):
            headers = dict(message.headers or {})
            if message.reply.startswith("$JS.ACK."):
                headers = {n: v for n, v in headers.items() if n not in _DELIVERED}
            self.heard.append(Heard(message.subject, message.data, headers, message.reply))


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[Listener]:
    """Everything that is said on a server without accounts, for the length of the block."""
    listener = Listener()
    client = await nats.connect(url, pending_size=0)
    try:
        await client.subscribe(">", cb=listener.hear, pending_bytes_limit=1 << 30)
        await client.flush()
        yield listener
    finally:
        await client.drain()


class Judge:
    """Puts messages to their entries in a document.

    Attributes:
        seen: Channel and message of each that has its entry.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._channels: Mapping[str, Any] = document["channels"]
        self._document = document
        self._payloads = Payloads(document)
        self._answers: dict[str, str] = {}
        self.seen: set[tuple[str, str]] = set()

    def problems(self, heard: Iterable[Heard]) -> list[str]:
        """What does not agree with the document, a sentence each."""
        found: dict[str, None] = {}
        for message in heard:
            for problem in self._problems(message):
                found.setdefault(f"{_shape(message.subject)}: {problem}")
        return list(found)

    def _problems(self, message: Heard) -> list[str]:
        if message.subject.startswith(_INBOX):
            name = self._answers.get(message.subject, "")
            # Whoever has asked nobody but NATS is answered by NATS.
            return self._one_of(name, message, "") if name else []
        for name, channel in self._channels.items():
            found = covers(channel["address"], message.subject) if channel["address"] else None
            if found is not None and self._has_values(channel, found):
                if message.reply and f"{name}Reply" in self._channels:
                    self._answers[message.reply] = f"{name}Reply"
                return self._one_of(name, message, message.subject.rpartition(".")[2])
        return ["there is no such subject"]

    def _has_values(self, channel: Mapping[str, Any], parameters: Mapping[str, str]) -> bool:
        for name, value in parameters.items():
            said = channel["parameters"][name]
            if "enum" in said and value not in said["enum"]:
                return False
        return True

    def _one_of(self, name: str, message: Heard, last: str) -> list[str]:
        """The message is exactly one of those that are said there."""
        said = {
            key: one["$ref"].rpartition("/")[2]
            for key, one in self._channels[name]["messages"].items()
        }
        if last in said:
            said = {last: said[last]}
        found = {key: self._against(one, message) for key, one in said.items()}
        fitting = [key for key, problems in found.items() if not problems]
        if len(fitting) == 1:
            self.seen.add((name, fitting[0]))
            return []
        if fitting:
            return [f"it is all of {', '.join(fitting)}"]
        told = [f"{key}: {problem}" for key, problems in found.items() for problem in problems]
        return told or ["nothing is said there"]

    def _against(self, name: str, message: Heard) -> list[str]:
        kind = self._document["components"]["messages"][name].get("contentType")
        headers = self._payloads.problems_of_headers(name, message.headers)
        try:
            match kind:
                case "application/json":
                    payload = json.loads(message.data)
                case _ if kind == MSGPACK:
                    payload = json_form(msgspec.msgpack.decode(message.data))
                case None:
                    payload = message.data.decode()
                case _:
                    return headers
        except (ValueError, msgspec.DecodeError) as error:
            return [f"it is no {kind}: {error}"]
        return headers + self._payloads.problems(name, payload)


def few_of_each(heard: Iterable[Heard]) -> list[Heard]:
    """Three messages of each shape of subject, and what answers them."""
    counts: Counter[str] = Counter()
    answers: set[str] = set()
    kept = []
    for message in heard:
        shape = _shape(message.subject)
        if message.subject.startswith(_INBOX):
            keep = message.subject in answers
        else:
            counts[shape] += 1
            keep = counts[shape] <= 3
        if keep:
            kept.append(message)
            answers.add(message.reply)
    return kept


def _shape(subject: str) -> str:
    """A subject without the ids in it."""
    parts = subject.split(".")
    return ".".join("…" if len(part) > 30 else part for part in parts)
